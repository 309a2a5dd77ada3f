"""The label set of a run: from the recipe or the training data, then fixed for the whole run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from distft.data.bad_records import usable
from distft.data.records import Record
from distft.data.sources import Source, sources_of
from distft.errors import UserError
from distft.process import pulse, stop_signals
from distft.recipe.tasks import TaskName, TaskPart
from distft.run.files import write_atomically
from distft.tasks.protocol import LABEL, LabelSpec
from distft.tasks.registry import spec_of

MOST = 1000  # labels; more are a column that holds something else


def settle(path: Path, parts: Sequence[TaskPart], begun: bool) -> dict[str, list[str]]:
    """The labels kept in `path`; if there are none yet they are found, and kept there. One rank calls it.

    Args:
        begun: the run has a checkpoint. Before, what is kept may be of data that were corrected since.

    Raises:
        UserError: the recipe names other labels than the run has, or a class is empty, or there are too many.
    """
    kept = read_labels(path)
    found = kept if begun else None
    named = named_in(parts)
    if found is None:
        found = {key: list(labels) for key, labels in find(parts).items()}
        if found != kept:
            write_atomically(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    for key, labels in named.items():
        if found.get(key) != labels:
            raise UserError(
                f"task.labels: this run has {', '.join(found.get(key, []))}, the recipe {', '.join(labels)}; "
                "a run keeps its labels, so start a new run"
            )
    return found


def read_labels(path: Path) -> dict[str, list[str]] | None:
    """The labels kept in `path`, None where there is no such file."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        for key, labels in stored.items():
            if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
                raise ValueError(f"{key} is no list of labels")
        return dict(stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy") from None


def named_in(parts: Sequence[TaskPart]) -> dict[str, list[str]]:
    """Labels that the recipe names."""
    found = {key_of(part.name): getattr(part.task, "labels", None) for part in parts}
    return {key: labels for key, labels in found.items() if labels is not None}


def key_of(name: TaskName) -> str:
    """What the label set of a task is called in labels.json."""
    return name or LABEL


def find(parts: Sequence[TaskPart]) -> dict[str, list[str]]:
    """All labels of the training data, in order: numbers by value, names by alphabet, "O" before other tags."""
    named = named_in(parts)
    found = {}
    for part in parts:
        key = key_of(part.name)
        data = [(spec_of(part, source.fields).labels, source) for source in sources_of(part, "train")]
        read = [(spec, source) for spec, source in data if spec is not None]
        if read:
            place = "task.labels" if part.name is None else f"task.tasks.{part.name}.task.labels"
            found[key] = _all(read, named.get(key), place)
    return found


def _all(data: Sequence[tuple[LabelSpec, Source]], named: list[str] | None, key: str) -> list[str]:
    """The labels of all sources, each with what finds its labels."""
    seen: dict[str, str] = {}  # label: where it came first
    spec, name = data[0][0], " + ".join(source.name for _, source in data)
    for finds, source in data:
        _add(seen, finds, source, named, key)
    spec.check(seen)
    if named is not None:
        if empty := [label for label in named if label not in seen]:
            raise UserError(f"{key}: no record of {name} has label {empty[0]!r}; remove that label, or add records")
        if unknown := [label for label in seen if label not in named]:
            raise _unknown(unknown[0], seen[unknown[0]], key)
    if not seen:
        raise UserError(f"{name}: no record has a label; add labels, or name their column (data.fields)")
    if len(seen) == 1 and spec.exclusive:
        raise UserError(f"{name}: all records have the same label {next(iter(seen))!r}; at least two labels are needed")
    # plain texts: transformers copies them, which a LabelText does not allow
    return sorted(map(str, seen), key=_rank) if named is None else named


def _add(seen: dict[str, str], spec: LabelSpec, source: Source, named: list[str] | None, key: str) -> None:
    def labels_of(record: Record) -> list[str]:
        labels = list(spec.find(record))
        for label in labels:
            if label not in seen:
                _check_text(label, record.where)
                if named is not None and label not in named and source.bad_budget is not None:
                    raise _unknown(label, record.where, key)
        return labels

    for record, labels in usable(source, labels_of):
        stop_signals.check()
        pulse.moving()
        for label in labels:
            if label not in seen:
                seen[label] = record.where
                if len(seen) > MOST:
                    raise UserError(
                        f"{record.where}: this is label {MOST + 1} of at most {MOST}; check the column (data.fields)"
                    )


def _unknown(label: str, where: str, key: str) -> UserError:
    return UserError(f"{where}: label {label!r} is not in {key}; correct it, or add it there")


def _check_text(label: str, where: str) -> None:
    """Raises UserError where labels.json could not hold it."""
    try:
        label.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: label {label!r} contains half of a surrogate pair; repair it") from None


def _rank(label: str) -> tuple[bool, bool, float, str]:
    try:
        return (False, False, float(label), label)
    except ValueError:
        return (True, label != "O", 0.0, label)
