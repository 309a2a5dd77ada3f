"""The parts of a pass: records cut into pieces of a fixed size, each predicted into a file that is whole or not there.

So a pass that was killed goes on where it was, with as many ranks as there are then, and what comes out does not depend
on their number.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from distft.checkpoint import store
from distft.checkpoint.state import Stored
from distft.data import sources
from distft.data.bad_records import Bad
from distft.data.records import Broken, Record
from distft.data.sources import Source
from distft.inference.groups import Group
from distft.process.console import Console
from distft.recipe.schema import Recipe
from distft.run.files import write_atomically
from distft.run.folder import RunDir
from distft.tasks.shared.generation import Decoding

PART = 256  # records
LEFT_OUT = "left out"  # key of a record that the task makes nothing of, as in training
BAD = "bad"  # key of a record that data.bad_records leaves out
_ABOUT = "pass.json"


@dataclass(frozen=True)
class Pass:
    """What is predicted with what.

    Attributes:
        sources: read one after the other.
        answered: the records hold what is right (evaluation).
        stored: the checkpoint; None: the base model, as before the run.
        folder: of the parts.
        held_out: the sources are those of the recipe, each with fields and a template of its own.
    """

    run: RunDir
    recipe: Recipe
    sources: Sequence[Source]
    folder: Path
    answered: bool
    stored: Stored | None
    part: str | None = None
    decoding: Decoding = field(default_factory=Decoding)
    held_out: bool = False

    @cached_property
    def about(self) -> str:
        """What parts of another pass would differ in, as JSON."""
        recipe, folder = self.recipe, self.stored and self.stored.folder
        parts: dict[str, Any] = {
            "source": [[sources.fingerprint(one), one.fields, one.template] for one in self.sources],
            "checkpoint": folder and [str(folder), (folder / store.MANIFEST).read_text(encoding="utf-8")],
            "decoding": asdict(self.decoding),
            "options": [self.part, self.answered, PART, recipe.train.micro_batch],
            "recipe": [section.model_dump(mode="json") for section in (recipe.task, recipe.model, recipe.data)],
        }
        return json.dumps(parts, sort_keys=True)

    def records(self) -> Iterator[Record | Broken]:
        for number, source in enumerate(self.sources):
            for row in sources.read(source) if self.refuses else sources.read_leniently(source):
                yield row if number == 0 or isinstance(row, Broken) else replace(row, source=number)

    @property
    def source(self) -> Source:
        """All of them as one, for what is said of them."""
        first, *others = self.sources
        return replace(first, spec=" + ".join(one.name for one in self.sources)) if others else first

    @property
    def refuses(self) -> bool:
        """Whether one bad record ends the pass."""
        return self.answered and self.source.bad_budget is None

    def file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"

    def done(self) -> Iterator[int]:
        """The parts that are there."""
        return (int(path.stem) for path in self.folder.glob("*.jsonl"))


def begin(work: Pass) -> None:
    """Make the folder of the parts; parts of another pass are removed."""
    about = work.about  # what is wrong with the input is said before anything is made
    if not has_begun(work):
        shutil.rmtree(work.folder, ignore_errors=True)
        work.folder.mkdir(parents=True)
        write_atomically(work.folder / _ABOUT, about)


def has_begun(work: Pass) -> bool:
    """Whether the folder is there, and of this pass."""
    try:
        return (work.folder / _ABOUT).read_text(encoding="utf-8") == work.about
    except OSError:
        return False


def do_parts(
    work: Pass, console: Console, mine: Callable[[int], bool] = lambda number: True, group: Group | None = None
) -> int:
    """The parts that are mine and not done yet. Returns the number of all parts.

    Args:
        group: the ranks that do them together with this one, which have the same ones to do; its first rank writes.
    """
    from distft.inference.predictor import Predictor

    predictor = None
    done = None if group is None else set(group.told(list(work.done())))
    count = 0
    records = work.records()
    with console.bar("records", total=None) as bar:
        while batch := list(itertools.islice(records, PART)):
            number, count = count, count + 1
            if not mine(number) or (work.file(number).exists() if done is None else number in done):
                continue
            predictor = predictor or Predictor(
                work.run.path, work.stored, work.part, work.decoding, work.held_out, group
            )
            outcomes = predictor.outcomes(batch, work.answered, work.refuses)
            if group is None or group.first:
                write(work, number, outcomes, predictor.answer)
            bar.at(number * PART + len(batch), "")
    return count


def write(work: Pass, number: int, outcomes: Sequence[Any], answer: Callable[[Any], dict[str, Any]]) -> None:
    """A part as a file."""
    if work.answered:
        shown = [line_of(one, number * PART) for one in outcomes]
    else:
        shown = [answer(one) if isinstance(one, dict) else {"error": str(one)} for one in outcomes]
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in shown]
    write_atomically(work.file(number), "".join(lines))


def line_of(outcome: dict[str, Any] | str | Bad, offset: int) -> dict[str, Any]:
    """What a part holds for a record that is to be scored. `offset`: index of the first record of the part."""
    match outcome:
        case Bad():
            return {BAD: asdict(replace(outcome, record=offset + outcome.record))}
        case str():
            return {LEFT_OUT: outcome}
    return outcome
