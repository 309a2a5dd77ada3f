"""The data loader: a pure function of seed, step and rank gives each rank its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from distft.data import order
from distft.data.packing import Rows
from distft.data.records import Document
from distft.data.token_cache import Corpus


@dataclass(frozen=True)
class MicroBatch:
    """What one rank feeds the model at once.

    Attributes:
        index: of the micro-batch within its step, over all ranks; dropout is seeded by it.
        samples: ids of the documents, by row; an empty row is padding.
        first: position of its first row in the stream of all rows.
        part: which of several tasks it is of.
    """

    index: int
    samples: list[list[int]]
    first: int = 0
    part: str | None = None


@dataclass(frozen=True)
class Census:
    """What the index of a corpus says of the micro-batches of all ranks in a step, without a look at their documents.

    Attributes:
        rows: padding included.
        targets: the sum of `Document.targets`.
        parts: the same for each of several tasks; the numbers themselves are 0 then.
    """

    micro_batches: int = 0
    rows: int = 0
    documents: int = 0
    targets: int = 0
    parts: Mapping[str, Census] = field(default_factory=dict)


@dataclass(frozen=True)
class Slots:
    """How a global batch is cut: `global_batch` rows a step, `micro_batch` rows at once, over `world` ranks."""

    global_batch: int
    micro_batch: int
    rank: int
    world: int

    def mine(self) -> range:
        """Indices of this rank's micro-batches within a step; the same number on every rank."""
        return range(self.rank, self.global_batch // self.micro_batch, self.world)


class Loader(Protocol):
    """The stream of rows, cut into steps."""

    def step(self, index: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of step `index`, counted from 0."""

    def documents(self, micro: MicroBatch) -> list[list[Document]]:
        """The documents of a micro-batch, by row."""

    def census(self, index: int) -> Census:
        """Of step `index`, the same on every rank."""


class Shuffle:
    """The order of the rows in each epoch.

    Args:
        batch: rows of similar lengths stand together, this many at a time; None: in any order.
        fixed: the same order in every epoch: that of the data, or by size (evaluation).
    """

    def __init__(self, corpus: Corpus, rows: Rows, seed: int, batch: int | None = None, fixed: bool = False) -> None:
        self._rows, self._seed, self._batch, self._fixed = rows, seed, batch, fixed
        # the widest of a row's documents: it is what the others are padded to
        self._widths = np.maximum.reduceat(corpus.sizes[rows.documents], rows.offsets[:-1]) if batch else None
        self._order = lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._fixed:
            rows = np.arange(len(self._rows))
            return rows if self._widths is None else np.argsort(self._widths, kind="stable")
        if self._widths is None or self._batch is None:
            return order.order(self._seed, epoch, len(self._rows))
        return order.grouped(self._seed, epoch, self._widths, self._batch)

    def samples(self, index: int) -> list[int]:
        """Ids of the documents in row `index` of the endless sequence of epochs."""
        epoch, position = divmod(index, len(self._rows))
        found: list[int] = self._rows.row(int(self._order(epoch)[position])).tolist()
        return found

    def documents(self, rows: range) -> npt.NDArray[np.int64]:
        """Ids of the documents in some rows, one after another, of that sequence."""
        epochs, positions = np.divmod(np.arange(rows.start, rows.stop), len(self._rows))
        chosen = np.zeros(len(rows), np.int64)
        for epoch in np.unique(epochs):
            chosen[epochs == epoch] = self._order(int(epoch))[positions[epochs == epoch]]
        begins, ends = self._rows.offsets[chosen], self._rows.offsets[chosen + 1]
        before = np.cumsum(ends - begins) - (ends - begins)
        return self._rows.documents[np.repeat(begins - before, ends - begins) + np.arange(int((ends - begins).sum()))]


class RowLoader:
    """Rows of all epochs as one endless sequence, cut into steps.

    Row number i of the sequence is in epoch i // rows; each epoch is in an order of its own.

    Args:
        total: rows to feed in all; what a last step lacks is padding. None: no end.
    """

    def __init__(self, corpus: Corpus, shuffle: Shuffle, slots: Slots, seed: int, total: int | None = None) -> None:
        self._corpus, self._shuffle, self._slots, self._seed, self._total = corpus, shuffle, slots, seed, total

    def step(self, index: int) -> Iterator[MicroBatch]:
        for micro in self._slots.mine():
            first = index * self._slots.global_batch + micro * self._slots.micro_batch
            rows = range(first, first + self._slots.micro_batch)
            yield MicroBatch(micro, [self._samples(row) for row in rows], first)

    def _samples(self, index: int) -> list[int]:
        return self._shuffle.samples(index) if self._total is None or index < self._total else []

    def documents(self, micro: MicroBatch) -> list[list[Document]]:
        return drawn(self._corpus, micro, self._seed)

    def census(self, index: int) -> Census:
        rows, micro_batches = self._slots.global_batch, self._slots.global_batch // self._slots.micro_batch
        first, end = index * rows, (index + 1) * rows
        if self._total is not None:
            first, end = min(first, self._total), min(end, self._total)
        return counted(self._corpus, self._shuffle, range(first, end), micro_batches, rows)


def counted(corpus: Corpus, shuffle: Shuffle, fed: range, micro_batches: int, rows: int) -> Census:
    """Of micro-batches to which these rows of a stream are fed."""
    documents = shuffle.documents(fed)
    return Census(micro_batches, rows, len(documents), int(corpus.targets[documents].sum(dtype=np.int64)))


def drawn(corpus: Corpus, micro: MicroBatch, seed: int) -> list[list[Document]]:
    """The documents of a micro-batch, each with the number that its place in the stream draws."""
    return [
        [replace(corpus.document(sample), draw=order.draw(seed, micro.first + row) ^ sample) for sample in ids]
        for row, ids in enumerate(micro.samples)
    ]
