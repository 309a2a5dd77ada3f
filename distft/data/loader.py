"""The data loader: a pure function of seed, step and rank gives each rank its rows."""

from __future__ import annotations

from bisect import bisect
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
        sources: of each of several sources, by name, how much of it there is.
    """

    micro_batches: int = 0
    rows: int = 0
    documents: int = 0
    targets: int = 0
    parts: Mapping[str, Census] = field(default_factory=dict)
    sources: Mapping[str, Share] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """What a step takes of a source. `size`: tokens, or milliseconds of speech."""

    documents: int
    size: int


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


class RowOrder(Protocol):
    """An endless sequence of rows."""

    def samples(self, index: int) -> list[int]:
        """Ids of the documents in row `index`."""

    def costs(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """What tells apart how long some rows take, int64 [n], > 0: of padded ones the size of the largest document,
        to which the others are padded; of packed ones the sum of the squared sizes of their documents."""

    def documents(self, rows: range) -> npt.NDArray[np.int64]:
        """Ids of all documents in some rows, int64 [k]."""


class Shuffle:
    """Rows in an order of its own for each epoch.

    Args:
        batch: rows of similar lengths stand together, this many at a time; None: in any order.
        fixed: the same order in every epoch: that of the data, or by size (evaluation).
        first: id of the document that is number 0 in `rows`.
        apart: documents of a row are one behind the other, and attention is within each; else all are padded to the
            widest.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: Rows,
        seed: int,
        batch: int | None = None,
        fixed: bool = False,
        first: int = 0,
        apart: bool = False,
    ) -> None:
        self._sizes = corpus.sizes[first:]
        self._rows, self._seed, self._batch, self._fixed, self._first = rows, seed, batch, fixed, first
        self._apart = apart
        self._order = lru_cache(maxsize=2)(self._make_order)

    @cached_property
    def _widths(self) -> npt.NDArray[np.int32]:
        return np.maximum.reduceat(self._sizes[self._rows.documents], self._rows.offsets[:-1])

    @cached_property
    def _costs(self) -> npt.NDArray[np.int64]:
        """By row. A packed one takes a * (tokens) + b * (lengths squared), with attention in the second term. Such rows
        are full but for a few, so that the first is the same for all, and the ratio a : b need not be known."""
        if not self._apart:
            return self._widths.astype(np.int64)
        squares = self._sizes[self._rows.documents].astype(np.int64) ** 2
        return np.add.reduceat(squares, self._rows.offsets[:-1])

    def _make_order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._fixed:
            return np.arange(len(self._rows)) if self._batch is None else np.argsort(self._widths, kind="stable")
        if self._batch is None:
            return order.order(self._seed, epoch, len(self._rows))
        return order.grouped(self._seed, epoch, self._widths, self._batch)

    def samples(self, index: int) -> list[int]:
        """Epoch follows epoch."""
        epoch, position = divmod(index, len(self._rows))
        found: list[int] = (self._rows.row(int(self._order(epoch)[position])) + self._first).tolist()
        return found

    def costs(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        epochs, positions = np.divmod(places, len(self._rows))
        costs = np.empty(len(places), np.int64)
        for epoch in np.unique(epochs):
            there = epochs == epoch
            costs[there] = self._costs[self._order(int(epoch))[positions[there]]]
        return costs

    def documents(self, rows: range) -> npt.NDArray[np.int64]:
        """Row by row."""
        epochs, positions = np.divmod(np.arange(rows.start, rows.stop), len(self._rows))
        chosen = np.zeros(len(rows), np.int64)
        for epoch in np.unique(epochs):
            chosen[epochs == epoch] = self._order(int(epoch))[positions[epochs == epoch]]
        begins, ends = self._rows.offsets[chosen], self._rows.offsets[chosen + 1]
        before = np.cumsum(ends - begins) - (ends - begins)
        at = np.repeat(begins - before, ends - begins) + np.arange(int((ends - begins).sum()))
        return self._rows.documents[at] + self._first


def by_cost(rows: RowOrder, places: Sequence[int], total: int | None = None) -> list[int]:
    """Places in a sequence of rows, the one that takes longest first; those from `total` on, which are empty, last."""
    costs = rows.costs(np.asarray(places, np.int64))
    if total is not None:
        costs[np.asarray(places) >= total] = 0
    return [places[at] for at in np.argsort(-costs, kind="stable")]


class RowLoader:
    """Rows of all epochs as one endless sequence, cut into steps.

    Row number i of the sequence is in epoch i // rows; each epoch is in an order of its own.

    Args:
        total: rows to feed in all; what a last step lacks is padding. None: no end.
        sorts: the micro-batches of a step hold its rows by what they take, the longest first, so that similar ones are
            padded together and all ranks have such at the same time.
        sources: names of the sources of the corpus, if it has several.
    """

    def __init__(
        self,
        corpus: Corpus,
        shuffle: RowOrder,
        slots: Slots,
        seed: int,
        total: int | None = None,
        sorts: bool = False,
        sources: Sequence[str] = (),
    ) -> None:
        self._corpus, self._shuffle, self._slots, self._seed, self._total = corpus, shuffle, slots, seed, total
        self._sorts, self._sources = sorts, sources

    def step(self, index: int) -> Iterator[MicroBatch]:
        size, first = self._slots.micro_batch, index * self._slots.global_batch
        rows: Sequence[int] = range(first, first + self._slots.global_batch)
        if self._sorts:
            rows = by_cost(self._shuffle, rows, self._total)
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
        return counted(self._corpus, self._shuffle, range(first, end), micro_batches, rows, self._sources)


def counted(
    corpus: Corpus, shuffle: RowOrder, fed: range, micro_batches: int, rows: int, sources: Sequence[str] = ()
) -> Census:
    """Of micro-batches to which these rows of a stream are fed. The corpus has `sources`, in this order, if several."""
    documents = shuffle.documents(fed)
    targets = int(corpus.targets[documents].sum(dtype=np.int64))
    shares = shares_of(corpus, documents, sources) if sources else {}
    return Census(micro_batches, rows, len(documents), targets, sources=shares)


def shares_of(corpus: Corpus, documents: npt.NDArray[np.int64], sources: Sequence[str]) -> dict[str, Share]:
    of = np.searchsorted(corpus.first_documents[1:-1], documents, side="right")
    counts = np.bincount(of, minlength=len(sources)).tolist()
    sizes = np.bincount(of, corpus.sizes[documents], minlength=len(sources)).tolist()
    return {name: Share(count, int(size)) for name, count, size in zip(sources, counts, sizes, strict=True)}


def drawn(corpus: Corpus, micro: MicroBatch, seed: int) -> list[list[Document]]:
    """The documents of a micro-batch, each with the number that its place in the stream draws."""
    ends = corpus.first_documents[1:-1].tolist()  # of all sources but the last
    return [
        [replace(corpus.document(sample), draw=draw ^ sample, source=bisect(ends, sample)) for sample in ids]
        for draw, ids in zip(order.draws(seed, micro.places), micro.samples, strict=True)
    ]
