"""What becomes of the records of a recipe's data, for `distft data`: texts with their learned parts, and counts."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers.utils import logging

from distft.data.packing import pack
from distft.data.records import Broken, Document, Record, content_of
from distft.data.sources import Source, read_leniently, sources_of
from distft.data.words import word_text
from distft.errors import UserError
from distft.model import base_model
from distft.model.context import RunContext
from distft.process.console import Console
from distft.recipe.schema import Recipe
from distft.recipe.sources import Which
from distft.recipe.tasks import TaskName
from distft.run.commits import pinned
from distft.run.folder import RunDir
from distft.tasks.protocol import Labels
from distft.tasks.shared.padding import unpack_json
from distft.training import hub_commits
from distft.training.datasets import packs

MOST_FAULTS = 5
LEARNED = {"tokens": "targets", "chosen": "chosen_targets", "rejected": "rejected_targets"}  # column: which of it


@dataclass(frozen=True)
class Piece:
    """A part of a text, all of it learned or nothing of it."""

    text: str
    learned: bool


@dataclass(frozen=True)
class Side:
    """One sequence of tokens of a document; a pair has two."""

    name: str
    pieces: Sequence[Piece]
    ids: Sequence[int]


@dataclass(frozen=True)
class Shown:
    """A document for people: `facts` are its labels and the like."""

    where: str
    sides: Sequence[Side]
    facts: Mapping[str, str]


@dataclass
class Preview:
    """What was found in the first records of a source.

    Attributes:
        complete: there are no more records than those read.
        faults: sentences about records that cannot be used, the first few; `faulty` is their number.
        bad_budget: share of the records that a run may leave out as bad; None: it refuses the first.
        notes: what was done to how many records; `warnings`: of some of these more, for the first record.
        repeated: documents that are equal to one before them, by `contents`, a hash of each one.
        sizes: of all documents, in `unit`.
        rows: that the documents take when they share rows; None: they do not.
        learns_tokens: what is learned are some of the tokens.
    """

    source: str
    unit: str
    row_size: int
    read: int = 0
    complete: bool = True
    faulty: int = 0
    faults: list[str] = field(default_factory=list)
    bad_budget: float | None = None
    unusable: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    warnings: dict[str, str] = field(default_factory=dict)
    repeated: int = 0
    contents: set[int] = field(default_factory=set)
    sizes: list[int] = field(default_factory=list)
    targets: int = 0
    rows: int | None = None
    learns_tokens: bool = False
    shown: list[Shown] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether a run would refuse these records."""
        return self.faulty > 0 and self.faulty / self.read > (self.bad_budget or 0.0)


def look(recipe: Recipe, part: TaskName, which: Which, show: int, most: int, console: Console) -> Preview:
    """Read and encode the first records as a run would.

    Args:
        show: documents to keep for people.
        most: records to read.

    Raises:
        UserError: there are no such data, or no tokenizer.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says that it has found none
    logging.disable_progress_bar()
    with TemporaryDirectory(prefix="distft-data-") as folder:
        run = RunDir(Path(folder))
        recipe = pinned(recipe, hub_commits.settle_alone(run, recipe, console))
        read = sources_of(next(one for one in recipe.parts() if one.name == part), which)
        if not read:
            raise UserError(f"the recipe names no data.{which}")
        context = RunContext(run, without_weights(recipe))
        family = context.model_spec.family
        labels = context.setting(part).labels
        tokenizer = getattr(context.processor, "tokenizer", context.processor)
        encoder = context.encoder(part, read[0])
        found = Preview(
            " + ".join(source.name for source in read), "ms" if family.hears else "tokens", recipe.data.row_tokens
        )
        found.bad_budget = read[0].bad_budget
        found.learns_tokens = LEARNED["tokens"] in encoder.columns
        with console.bar(f"data.{which}: records", total=None) as bar:
            for number, source in enumerate(read, start=1):
                encoder = context.encoder(part, source)
                for record in first(source, -(-most // len(read)), found):
                    found.read += 1
                    bar.at(found.read, "")
                    add(found, record, encoder, tokenizer, labels, show * number // len(read))
    if packs(recipe, context.model_spec) and context.model_spec.packs and found.sizes:
        found.rows = len(pack(np.array(found.sizes, np.int32), recipe.data.row_tokens, recipe.data.seed))
    return found


def without_weights(recipe: Recipe) -> Recipe:
    """The recipe with a base model that is here, of one on the hub the tokenizer and the configuration alone."""
    if not base_model.is_on_hub(recipe.model):
        return recipe
    folder = base_model.fetch(recipe.model, weights=False)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"path": str(folder)})})


def first(source: Source, most: int, found: Preview) -> Iterator[Record | Broken]:
    records = read_leniently(source)
    yield from itertools.islice(records, most)
    found.complete &= next(records, None) is None


def add(found: Preview, record: Record | Broken, encoder: Any, tokenizer: Any, labels: Labels, show: int) -> None:
    """Count a record, and keep its documents for people while there are less than `show`."""
    try:
        if isinstance(record, Broken):
            raise UserError(f"{record.where} {record.why}")
        encoded = encoder.encode(record)
    except UserError as error:
        found.faulty += 1
        found.faults += [str(error)][: MOST_FAULTS - len(found.faults)]
        return
    found.notes.update(encoded.notes)
    found.warnings = {**encoded.warnings, **found.warnings}
    found.unusable += not encoded.documents
    for document in encoded.documents:
        found.sizes.append(document.size)
        content = content_of(document.columns)
        found.repeated += content in found.contents
        found.contents.add(content)
        found.targets += document.targets
        if len(found.shown) < show:
            found.shown.append(shown(record.where, document, tokenizer, labels))


def shown(where: str, document: Document, tokenizer: Any, labels: Labels) -> Shown:
    columns = document.columns
    sides = [side(name, columns, tokenizer) for name in ("tokens", "chosen", "rejected") if name in columns]
    if "labels" in columns:  # a text of its own, which is all learned
        ids = [int(token) for token in columns["labels"]]
        sides.append(Side("target", [Piece(tokenizer.decode(ids), True)], ids))
    return Shown(where, sides, dict(facts(document, tokenizer, labels)))


def side(name: str, columns: Mapping[str, Any], tokenizer: Any) -> Side:
    """A sequence in pieces, cut where what is learned begins and ends."""
    ids = [int(token) for token in columns[name]]
    learned = columns.get(LEARNED[name])
    flags = [False] * len(ids) if learned is None else [bool(flag) for flag in learned]
    pieces = []
    for flag, run in itertools.groupby(zip(ids, flags, strict=True), key=lambda pair: pair[1]):
        pieces.append(Piece(tokenizer.decode([token for token, _ in run]), flag))
    return Side(name, pieces, ids)


def facts(document: Document, tokenizer: Any, labels: Labels) -> Iterator[tuple[str, str]]:
    """What is learned of a document beside texts, by columns that tasks have in common."""
    columns = document.columns
    if "label" in columns:
        yield "label", named(columns["label"], labels)
    if "tags" in columns and "words" in columns:
        tags = (labels[int(tag)] for tag in columns["tags"])
        seen = (" (no token left)" if start < 0 else "" for start in columns["starts"])
        words = map(word_text, unpack_json(columns["words"]))
        yield "tags", " ".join(f"{word}/{tag}{lost}" for word, tag, lost in zip(words, tags, seen, strict=True))
    if "span" in columns and len(columns["span"]) == 2:
        begin, end = (int(place) for place in columns["span"])
        yield "answer", tokenizer.decode([int(token) for token in columns["tokens"][begin : end + 1]])


def named(label: Any, labels: Labels) -> str:
    """A class by its name, several by theirs, a number as it is."""
    if not labels:
        return f"{float(label[0]):g}"
    if np.issubdtype(label.dtype, np.integer):
        return labels[int(label[0])]
    return ", ".join(name for name, has in zip(labels, label, strict=True) if has) or "none"
