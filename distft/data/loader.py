"""The data loader: a pure function of seed, step and rank gives each rank its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from distft.data import order
from distft.data.corpus import Corpus
from distft.data.packing import Rows
from distft.data.records import Document


@dataclass(frozen=True)
class MicroBatch:
    """What one rank feeds the model at once.

    Attributes:
        index: of the micro-batch within its step, over all ranks; dropout is seeded by it.
        samples: ids of the documents, by row; an empty row is padding.
        places: of its rows in the stream of all rows.
        part: which of several tasks it is of.
    """

    index: int
    samples: list[list[int]]
    places: Sequence[int] = ()
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

    def census(self, index: int) -> Census | None:
        """Of step `index`, the same on every rank; None if no index tells it."""


class Shuffle:
    """The order of the rows in each epoch.

    Args:
        batch: rows of similar lengths stand together, this many at a time; None: in any order.
        fixed: the same order in every epoch: that of the data, or by size (evaluation).
    """

    def __init__(self, corpus: Corpus, rows: Rows, seed: int, batch: int | None = None, fixed: bool = False) -> None:
        self._corpus, self._rows, self._seed, self._batch, self._fixed = corpus, rows, seed, batch, fixed
        self._order = lru_cache(maxsize=2)(self._make_order)

    @cached_property
    def _widths(self) -> npt.NDArray[np.int32]:
        """The widest of each row's documents: it is what the others are padded to."""
        return np.maximum.reduceat(self._corpus.sizes[self._rows.documents], self._rows.offsets[:-1])

    def _make_order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._fixed:
            return np.arange(len(self._rows)) if self._batch is None else np.argsort(self._widths, kind="stable")
        if self._batch is None:
            return order.order(self._seed, epoch, len(self._rows))
        return order.grouped(self._seed, epoch, self._widths, self._batch)

    def samples(self, index: int) -> list[int]:
        """Ids of the documents in row `index` of the endless sequence of epochs."""
        epoch, position = divmod(index, len(self._rows))
        found: list[int] = self._rows.row(int(self._order(epoch)[position])).tolist()
        return found

    def by_width(self, places: Sequence[int], total: int | None = None) -> list[int]:
        """Places in the sequence, the widest row first; those from `total` on hold nothing, and come last."""
        epochs, positions = np.divmod(np.asarray(places, np.int64), len(self._rows))
        widths = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            there = epochs == epoch
            widths[there] = self._widths[self._order(int(epoch))[positions[there]]]
        if total is not None:
            widths[np.asarray(places) >= total] = 0
        return [places[at] for at in np.argsort(-widths, kind="stable")]

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
        sorts: the micro-batches of a step hold its rows by width, the widest first, so that similar ones are padded
            together and all ranks have such at the same time.
    """

    def __init__(
        self,
        corpus: Corpus,
        shuffle: Shuffle,
        slots: Slots,
        seed: int,
        total: int | None = None,
        sorts: bool = False,
    ) -> None:
        self._corpus, self._shuffle, self._slots, self._seed, self._total = corpus, shuffle, slots, seed, total
        self._sorts = sorts

    def step(self, index: int) -> Iterator[MicroBatch]:
        size, first = self._slots.micro_batch, index * self._slots.global_batch
        rows: Sequence[int] = range(first, first + self._slots.global_batch)
        if self._sorts:
            rows = self._shuffle.by_width(rows, self._total)
        for micro in self._slots.mine():
            places = tuple(rows[micro * size : (micro + 1) * size])
            yield MicroBatch(micro, [self._samples(row) for row in places], places)

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
        [replace(corpus.document(sample), draw=draw ^ sample) for sample in ids]
        for draw, ids in zip(order.draws(seed, micro.places), micro.samples, strict=True)
    ]
