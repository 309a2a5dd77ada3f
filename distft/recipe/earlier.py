"""Defaults that changed: a run that was begun under the earlier one keeps it, and so its losses."""

from __future__ import annotations

from datetime import date
from typing import Any, get_args

from distft.recipe.schema import Recipe
from distft.recipe.section import Section

EARLIER: dict[tuple[str, str], object] = {
    ("engine", "grad_dtype"): "bf16",
    ("train", "router_loss"): 0.0,
    ("train", "decay"): "all",
    ("adapter", "routers"): True,
    ("task", "scheme"): "exact",
    ("data", "detect"): False,
    ("data", "today"): None,
}
"""(section, key): what the key stood for in recipes that were resolved before there was such a key."""


def complete(resolved: dict[str, Any]) -> None:
    """Give a resolved recipe, as read, the keys that it was resolved without."""
    for (section, key), value in EARLIER.items():
        values = resolved.get(section)
        if isinstance(values, dict) and key in _section(section, values).model_fields:
            values.setdefault(key, value)


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
    for section, key in EARLIER:
        before, after = getattr(old, section), getattr(new, section)
        if key in type(before).model_fields and key in type(after).model_fields and key not in after.model_fields_set:
            kept = after.model_copy(update={key: getattr(before, key)})
            new = new.model_copy(update={section: kept})
    return new
