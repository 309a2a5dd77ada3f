"""How `predict` and `eval` read their input file."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distft.data import places, sources
from distft.data.bad_records import usable
from distft.data.formats import parse
from distft.data.records import Record
from distft.data.sources import Source
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.recipe.tasks import Generation, TaskName, TaskPart
from distft.run.folder import RunDir
from distft.tasks import labels
from distft.tasks.registry import spec_of, specs_of
from distft.tasks.shared.generation import Decoding

PLACEHOLDERS = ("_", "-")  # for tags that are not known
FIRST = 256  # records of a file, by which its form is told


def checked_part(recipe: Recipe, name: TaskName) -> TaskName:
    """Raises UserError if a task must be named and is not, or the reverse."""
    names = [part.name for part in recipe.parts() if part.name is not None]
    if names and name not in names:
        raise UserError(f"--task: this run has the tasks {', '.join(names)}; choose one")
    if not names and name is not None:
        raise UserError(f"--task {name}: this run has one task only; leave it out")
    return name


def part_of(recipe: Recipe, name: TaskName) -> TaskPart:
    return next(part for part in recipe.parts() if part.name == name)


def check_decoding(recipe: Recipe, decoding: Decoding) -> None:
    """Raises UserError where a choice of words is given to a task that makes none, or has its own settings."""
    if decoding != Decoding() and not all(spec.takes_decoding for spec in specs_of(recipe).values()):
        own = "; set task.beams and task.longest_target" if isinstance(recipe.task, Generation) else ""
        raise UserError(f"--max-tokens, --temperature: task.type {recipe.task.type} uses neither{own}")


def check_output(source: Path, out: Path) -> None:
    """Raises UserError where there can be no such file, or it is what is read."""
    if out.is_dir() or not out.name:
        raise UserError(f"--output {out} is a folder; give a file")
    if source.exists() and out.exists() and out.samefile(source):
        raise UserError(f"--output {out} is the input; give another file")


def source_like(run: RunDir, recipe: Recipe, path: Path, part: str | None, answered: bool) -> Source:
    """A file that is read as the training data are, where it is of the same form; of a text each line is a record.

    Args:
        answered: the records hold what is right, and so the form of the training data.
    """
    like, suffix = sources.sources_of(part_of(recipe, part), "train")[0], places.suffix_of(path)
    text, encoding = suffix in places.TEXTS, None
    if isinstance(like.spec, str) and places.suffix_of(Path(like.spec)) == suffix:
        same = replace(like, spec=str(path), hub_config=None, filter={})
        known = (labels.read_labels(run.labels) or {}).get(labels.key_of(part), [])
        if (like.columns or like.delimiter or like.format != "auto") and (
            answered or not text or looks_like(same, known, part_of(recipe, part).fields.get("tags", "tags"))
        ):
            return same
        encoding = like.encoding
    spec = {column_of(recipe, part): str(path)} if text else str(path)
    return Source(spec, encoding=encoding, detect=like.detect, bad_budget=like.bad_budget)


def trained_on_texts(recipe: Recipe) -> bool:
    """Whether a language model learned plain texts, by the first record. Not if its data are not there any more."""
    try:
        source = sources.sources_of(recipe.parts()[0], "train")[0]
        _, first = next(usable(source, lambda record: parse(record, source.fields)), (None, None))
        return isinstance(first, str)
    except UserError:
        return False


def looks_like(source: Source, tags: Sequence[str], column: str = "tags") -> bool:
    """Whether a file is of this form and no texts: most of its lines have the columns, or most tags are of this run."""
    first = list(itertools.islice(sources.read_leniently(source), FIRST))
    whole = [one for one in first if isinstance(one, Record)]
    if source.format != "conll":
        return 2 * len(whole) > len(first)
    found = [tag for one in whole for tag in one.fields.get(column, ())]
    return 2 * sum(tag in (*tags, *PLACEHOLDERS) for tag in found) > len(found)


def column_of(recipe: Recipe, name: TaskName) -> str:
    """The column that holds what to predict from, if that is one text; of speech its path."""
    part = part_of(recipe, name)
    field = spec_of(part).input_field
    return part.fields.get(field, field)
