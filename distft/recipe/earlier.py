"""Defaults that changed: a run that was begun under the earlier one keeps it, and so its losses."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any, get_args

from distft.recipe.schema import Recipe
from distft.recipe.section import Section
from distft.recipe.tasks import MultiTask

EARLIER: dict[tuple[str, str], object] = {
    ("engine", "grad_dtype"): "bf16",
    ("engine", "loss_chunk"): 0,
    ("engine", "reduce"): "micro_batch",
    ("train", "router_loss"): 0.0,
    ("train", "decay"): "all",
    ("adapter", "routers"): True,
    ("task", "scheme"): "exact",
    ("task", "words"): "spaces",
    ("data", "detect"): False,
    ("data", "today"): None,
    ("data", "group_by_length"): None,
    ("data", "balance"): False,
}
"""(section, key): what the key stood for in recipes that were resolved before there was such a key."""

WHOLE_LOGITS = ("seq2seq-lm", "speech-seq2seq")
"""Tasks for which `engine.loss_chunk` said nothing until after there was `engine.reduce`."""


def complete(resolved: dict[str, Any]) -> None:
    """Give a resolved recipe, as read, the keys that it was resolved without."""
    engine = resolved.get("engine")
    writes = any(task.get("type") in WHOLE_LOGITS for task in _all_of(resolved, "task"))
    if writes and isinstance(engine, dict) and "reduce" not in engine:
        engine["loss_chunk"] = 0
    for (section, key), value in EARLIER.items():
        for values in _all_of(resolved, section):
            if key in _section(section, values).model_fields:
                values.setdefault(key, value)


def _all_of(resolved: dict[str, Any], section: str) -> Iterator[dict[str, Any]]:
    """A section, as far as there is one, and the sections of that name of each of several tasks."""
    values = resolved.get(section)
    if isinstance(values, dict):
        yield values
        tasks = values.get("tasks") if section == "task" else None
        for part in tasks.values() if isinstance(tasks, dict) else ():
            if isinstance(part, dict):
                yield from _all_of(part, section)


def _section(name: str, values: dict[str, Any]) -> type[Section]:
    """The class of a section: its only one, or that of its type."""
    annotation = Recipe.model_fields[name].annotation
    classes: tuple[type[Section], ...] = get_args(annotation) or (annotation,)
    types = [(one, one.model_fields.get("type")) for one in classes]
    fit = (one for one, field in types if field is not None and values.get("type") in get_args(field.annotation))
    return next(fit, classes[0])


def begun(recipe: Recipe, day: str | None = None) -> Recipe:
    """A recipe as the run keeps it: what depends on the time, is as it was when the run began (`day`, or today)."""
    today = recipe.data.today or day or date.today().isoformat()
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"today": today})})


def inherited(old: Recipe, new: Recipe) -> Recipe:
    """`new`, with the values of `old` for those of these keys that `new` leaves to their defaults."""
    sections = dict.fromkeys(section for section, _ in EARLIER)
    return new.model_copy(update={name: _kept(name, getattr(old, name), getattr(new, name)) for name in sections})


def _kept(section: str, old: Section, new: Section) -> Section:
    kept: dict[str, Any] = {
        key: getattr(old, key)
        for name, key in EARLIER
        if name == section
        and key in type(old).model_fields
        and key in type(new).model_fields
        and key not in new.model_fields_set
    }
    if isinstance(old, MultiTask) and isinstance(new, MultiTask):
        kept["tasks"] = {
            name: part.model_copy(update={"task": _kept(section, old.tasks[name].task, part.task)})
            if name in old.tasks
            else part
            for name, part in new.tasks.items()
        }
    return new.model_copy(update=kept)
