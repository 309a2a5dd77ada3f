"""The recipe loader: strict YAML and overrides in, a frozen `Recipe` or one `UserError` out.

The keys themselves are in `distft.recipe.schema`. Everything wrong with a recipe is reported at once, a line a problem.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distft.errors import UserError
from distft.recipe import earlier, yamlfile
from distft.recipe.adalora_phases import plan_phases
from distft.recipe.adapters import AdaLora, Lora
from distft.recipe.batch import AUTO
from distft.recipe.changes import Difference
from distft.recipe.messages import did_you_mean, explain
from distft.recipe.plugin_tasks import recipe_class_of
from distft.recipe.schema import Data, Recipe
from distft.recipe.section import is_url
from distft.recipe.sources import COMPRESSED
from distft.recipe.tasks import TaskPart
from distft.recipe.yamlfile import Draft, Keys

_DATA_SUFFIXES = (
    ".jsonl",
    ".json",
    ".csv",
    ".tsv",
    ".parquet",
    ".txt",
    ".text",
    ".conll",
    ".bio",
    ".iob",
    *COMPRESSED,
    ".jinja",
)
_MUCH_DEPENDS_ON: tuple[Keys, ...] = (("task",), ("model",), ("data",), ("train",))
_PATHS: dict[Keys, bool] = {  # key: whether it may be a hub id, which looks like a relative path
    ("model", "path"): True,
    ("data", "train"): True,
    ("data", "eval"): True,
    ("data", "template"): False,
    ("data", "cache"): False,
    ("adapter", "from"): True,
}


def load(path: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe in `path`, changed by `key.path=value` overrides, with a name and absolute paths.

    Raises UserError, a line a problem, when a file or an override is not a valid recipe.
    """
    draft = yamlfile.read(path)
    for rank, text in enumerate(overrides, start=1):
        draft.override(text, rank)
    _make_paths_absolute(draft)
    if draft.values.get("name") is None:
        draft.values["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip(".")[:64] or "run"
    return _validated(draft)


def load_resolved(path: Path) -> Recipe:
    """The recipe that `dump` wrote to `path`, as it was meant then. Raises UserError as `load` does."""
    draft = yamlfile.read(path)
    earlier.complete(draft.values)
    return _validated(draft)


def dump(recipe: Recipe) -> str:
    """YAML with every key of `recipe`; `load` and `load_resolved` read it back to an equal recipe."""
    return yamlfile.dump(recipe.model_dump())


def differences(old: Recipe, new: Recipe) -> list[Difference]:
    """Every key on which `old` and `new` disagree, in the order of the recipe; not those that `new` inherits."""
    before, after = dict(_flat(old.model_dump())), dict(_flat(earlier.inherited(old, new).model_dump()))
    # repr, because 1, 1.0 and true are equal in Python and different in a model's configuration
    return [
        Difference(key, before.get(key), after.get(key))
        for key in before | after
        if repr(before.get(key, ...)) != repr(after.get(key, ...))
    ]


def check_sizes(recipe: Recipe, world: int) -> None:
    """Every rank must get the same number of micro-batches; of `auto`, which is not settled yet, of rows.

    Raises:
        UserError: the global batch does not divide; the message names the nearest that fit.
    """
    micro, batch = recipe.train.micro_batch, recipe.train.global_batch
    unit, what = (world, "") if micro == AUTO else (micro * world, f"micro_batch {micro} x ")
    if batch % unit:
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        near = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"train.global_batch {batch} is not a multiple of {what}{world} ranks; "
            f"nearest that fit: train.global_batch={near}"
        )


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
        "title": "distft recipe",
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None or prefix in ("model.init.config.", "data.fields."):
            # a null of ours is the same as no key; a null of theirs overwrites a default
            yield prefix + key, value


def _validated(draft: Draft) -> Recipe:
    root = recipe_class_of(draft.values)
    try:
        recipe = root.model_validate(draft.values)
        found = list(contradictions(recipe))
    except ValidationError as error:
        recipe, found = None, list(explain(error, draft.values, root))
        found += _contradictions_beside([key for key, _ in found], draft.values, root)
    draft.problems += [(draft.place(key), key, text) for key, text in found]
    if recipe is None or draft.problems:
        raise UserError(draft.report())
    return recipe


def _contradictions_beside(wrong: list[Keys], values: Mapping[str, Any], root: type[Recipe]) -> list[tuple[Keys, str]]:
    """What is wrong between keys, looked for without those that are `wrong` by themselves, and without what names one
    of them: all problems are reported at once, and none that is only a consequence."""
    if any(key in ((), *_MUCH_DEPENDS_ON) for key in wrong):
        return []
    rest: Any = copy.deepcopy(values)
    for key in wrong:
        section, leaf = rest, key[:-1] if len(key) > 1 and key[-1] == "type" else key
        for name in leaf[:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(leaf[-1], None)
    try:
        found = list(contradictions(root.model_validate(rest)))
    except ValidationError as error:
        found = list(explain(error, rest, root))
    names = {str(key[-1]) for key in wrong}
    above = {key[:end] for key in wrong for end in range(min(2, len(key)), len(key) + 1)}
    return [(key, text) for key, text in found if key not in above and not names & set(re.findall(r"\w+", text))]


def contradictions(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """Between sections that are right each by itself: the key, and what is wrong with it."""
    adapter, engine = recipe.adapter, recipe.engine
    yield from _contradictions_of_task(recipe)
    if recipe.data.streaming:
        yield from _contradictions_of_streaming(recipe)
    if isinstance(adapter, AdaLora):
        if engine.offload_optimizer:
            text = "cannot be used with adapter.type adalora, whose optimizer state is small; leave it out"
            yield ("engine", "offload_optimizer"), text
        if recipe.train.steps is not None:
            try:
                plan_phases(adapter, recipe.train.steps)
            except ValueError as error:
                yield ("adapter",), str(error)
    if isinstance(adapter, Lora) and adapter.quantize is not None and engine.zero_stage == 3:
        text = "4-bit weights cannot be sharded by ZeRO 3; use engine.zero_stage 0, 1 or 2, or leave it out"
        yield ("adapter", "quantize"), text


def _contradictions_of_streaming(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """Between `data.streaming` and what has to know all documents before the first step."""
    key = ("data", "streaming")
    if recipe.train.steps is None:
        yield key, "needs train.steps: how many rows an epoch has is only known at its end"
    if len(recipe.parts()) > 1:
        yield (
            key,
            f"cannot be used with task.type {recipe.task.type}, whose data have to be counted first; leave it out",
        )
    if recipe.task.type == "dpo":
        yield key, "cannot be used with task.type dpo, which reads all pairs before the first step; leave it out"
    if recipe.task.type in ("ctc", "speech-seq2seq"):
        text = "whose recordings would all lie in memory, a thousand for each row of the batch; leave it out"
        yield key, f"cannot be used with task.type {recipe.task.type}, {text}"
    if recipe.data.duplicates == "drop":
        yield ("data", "duplicates"), "compares all documents, which data.streaming does not know; leave it out"
    if recipe.data.group_by_length is True:
        yield ("data", "group_by_length"), "sorts all rows, which data.streaming does not know; use step or false"


def _contradictions_of_task(recipe: Recipe) -> Iterator[tuple[Keys, str]]:
    """Between the task and the other sections."""
    task, data, best = recipe.task, recipe.data, recipe.train.best
    parts = recipe.parts()
    held_out = any(part.eval for part in parts)
    if parts[0].keys != ("data",) and (data.train is not None or data.eval is not None):
        yield (
            ("data", "train" if data.train else "eval"),
            f"task.type {task.type} takes its data from task.tasks; leave it out",
        )
    for part in parts:
        if not part.train:
            yield (*part.keys, "train"), f"missing; give it: {Data.model_fields['train'].description}"
    if data.overlong is not None and data.overlong not in task.OVERLONG:
        fits = " or ".join(task.OVERLONG)
        yield ("data", "overlong"), f"got '{data.overlong}'; task.type {task.type} can {fits}"
    if recipe.train.head_lr is not None and not task.HAS_HEAD:
        yield ("train", "head_lr"), f"task.type {task.type} adds no head to the model; leave it out"
    if recipe.train.router_loss and not task.BALANCES:
        yield ("train", "router_loss"), f"task.type {task.type} has no such loss; leave it out"
    if best is not None and not held_out:
        yield ("train", "best"), "needs held-out data; set data.eval"
    if best is not None and best not in task.SCORES:
        hint = did_you_mean(best, task.SCORES)
        yield ("train", "best"), f"got '{best}'; {hint}task.type {task.type} has the scores {', '.join(task.SCORES)}"
    for part in parts:
        yield from _contradictions_of_sources(part)
        if best is not None and part.name == best.partition(".")[0] and held_out and not part.eval:
            yield ("train", "best"), f"got '{best}', but that task has no held-out data; set its `eval`"


def _contradictions_of_sources(part: TaskPart) -> Iterator[tuple[Keys, str]]:
    known = part.task.FIELDS
    named: dict[Keys, Mapping[str, str]] = {part.keys: part.fields}
    for which, sources in (("train", part.train), ("eval", part.eval)):
        for number, source in enumerate(sources):
            if source.fields is not None and source.fields != part.fields:
                named[(*part.keys, which, number)] = source.fields
            if which == "eval" and source.weight is not None:
                yield (*part.keys, which, number, "weight"), "held-out data are taken as they are; leave it out"
    for key, fields in named.items():
        for name in fields:
            if known and name not in known:
                text = f"task.type {part.task.type} has no such field; its fields are {', '.join(known)}"
                yield (*key, "fields", name), text


def _make_paths_absolute(draft: Draft) -> None:
    """Makes the paths of local files independent of where the recipe and the shell are."""
    for key, may_be_hub_id in {**_PATHS, **_paths_of_tasks(draft.values)}.items():
        section: Any = draft.values
        for name in key[:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and key[-1] in section:
            _make_absolute(draft, section, key, may_be_hub_id)


def _make_absolute(draft: Draft, section: Any, key: Keys, may_be_hub_id: bool) -> None:
    """The path at `key`, the last of which is its place in `section`; or those of parallel files, or of a list."""
    value = section[key[-1]]
    if isinstance(value, str):
        section[key[-1]] = _absolute(value, draft.place(key).folder, may_be_hub_id)
    elif isinstance(value, dict):
        for column in value:
            _make_absolute(draft, value, (*key, column), False)
    elif isinstance(value, list):
        for number, source in enumerate(value):
            if isinstance(source, dict):
                for name in {"path", "template"} & source.keys():
                    _make_absolute(draft, source, (*key, number, name), may_be_hub_id and name == "path")
            else:
                _make_absolute(draft, value, (*key, number), may_be_hub_id)


def _paths_of_tasks(values: Mapping[str, Any]) -> dict[Keys, bool]:
    task = values.get("task")
    tasks = task.get("tasks") if isinstance(task, dict) else None
    names = tasks if isinstance(tasks, dict) else ()
    return {("task", "tasks", name, which): True for name in names for which in ("train", "eval")}


def _absolute(path: str, folder: str, may_be_hub_id: bool) -> str:
    """`path` as seen from `folder`; as it is when it is absolute, or nothing says that it is no hub id."""
    full = os.path.abspath(os.path.join(folder, os.path.expanduser(path)))
    local = path.startswith(("./", "../", "~")) or path.lower().endswith(_DATA_SUFFIXES)
    if not path or is_url(path) or os.path.isabs(path) or not (local or not may_be_hub_id or os.path.exists(full)):
        return path
    return full
