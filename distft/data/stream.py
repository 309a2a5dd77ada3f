"""Streaming: rows for training from records that are encoded while it runs.

Each row of the global batch is a lane (`lanes`), which gives one row per step. Everything is a function of the seed and
of the lanes' cursors, so that cursors and data give the same rows to any number of ranks, in any micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
import numpy.typing as npt

from distft.data import order
from distft.data.lanes import Cursor, Lane, Mark, Row, Stock
from distft.data.loader import MicroBatch, Slots
from distft.data.records import Document

_KEPT = 4  # steps before which places are known: the feed is ahead of training by two at most

Cursors = Sequence[Sequence[Cursor]]  # by lane and source
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where this rank's lanes are before a step: of each source, by lane."""

    marks: Mapping[int, Sequence[Mark]] = field(repr=False)

    @property
    def read(self) -> float:
        """Blocks whose rows were given to all these lanes together."""
        return sum(mark.read for marks in self.marks.values() for mark in marks)

    def cursors(self) -> dict[int, list[Cursor]]:
        return {lane: [mark.cursor() for mark in marks] for lane, marks in self.marks.items()}


class StreamLoader:
    """The stream of rows, cut into steps; row i of the stream is of lane i mod L in step i // L. A `Loader`.

    Steps are taken one after another; one of the last few can be taken again.

    Args:
        sources: which of `stocks` row i is of.
    """

    def __init__(self, stocks: Sequence[Stock], sources: Callable[[int], int], slots: Slots, seed: int) -> None:
        self._stocks, self._source_of, self._slots, self._seed = stocks, sources, slots, seed
        size = slots.micro_batch
        self._mine = [lane for micro in slots.mine() for lane in range(micro * size, (micro + 1) * size)]
        self._lock = Lock()  # a feed that was given up may still be at work
        self.seek(0, None)

    @property
    def sources(self) -> int:
        """How many there are."""
        return len(self._stocks)

    def seek(self, step: int, cursors: Cursors | None) -> None:
        """Go to a step, counted from 0. `cursors`: where all lanes are before it; None: at their beginnings."""
        with self._lock:
            self._places: dict[int, Place] = {}
            self._go_to(
                step, {lane: cursors[lane] if cursors else [Cursor()] * len(self._stocks) for lane in self._mine}
            )

    def _go_to(self, step: int, cursors: Mapping[int, Sequence[Cursor]]) -> None:
        self._next = step
        self._rows: dict[int, Row] = {}  # of the newest step, by their numbers in the stream
        self._given: dict[int, tuple[Numbers, Numbers]] = {}
        self._lanes = {
            lane: [Lane(stock, lane, cursor) for stock, cursor in zip(self._stocks, own, strict=True)]
            for lane, own in cursors.items()
        }
        self._take_down()

    def _take_down(self) -> None:
        self._places[self._next] = Place({lane: [one.mark() for one in own] for lane, own in self._lanes.items()})
        for old in [step for step in self._places if step < self._next - _KEPT]:
            del self._places[old]
            self._given.pop(old, None)

    def step(self, index: int) -> Iterator[MicroBatch]:
        """Raises RuntimeError if it is neither the next one nor one of the last."""
        with self._lock:
            if index != self._next:
                self._go_to(index, self.place(index).cursors())
            first = index * self._slots.global_batch
            self._rows = rows = {first + lane: self._row(first + lane) for lane in self._mine}
            every = [document for row in rows.values() for _, document in row]
            sources, sizes = ([getattr(one, name) for one in every] for name in ("source", "size"))
            self._given[index] = np.array(sources, np.int64), np.array(sizes, np.int64)
            self._next += 1
            self._take_down()
        size = self._slots.micro_batch
        for micro in self._slots.mine():
            places = tuple(range(first + micro * size, first + (micro + 1) * size))
            yield MicroBatch(micro, [[sample for sample, _ in rows[place]] for place in places], places)

    def _row(self, place: int) -> Row:
        return self._lanes[place % self._slots.global_batch][self._source_of(place)].row()

    def documents(self, micro: MicroBatch) -> list[list[Document]]:
        """Of a micro-batch of the step that was taken last."""
        draws = order.draws(self._seed, micro.places)
        return [
            [replace(document, draw=draw ^ sample) for sample, document in self._rows[place]]
            for draw, place in zip(draws, micro.places, strict=True)
        ]

    def census(self, index: int) -> None:
        """What a step holds is known when its records are encoded."""

    def given(self, step: int) -> tuple[Numbers, Numbers]:
        """The documents that this rank was given in a step, one of the last: which source each is from, and its size;
        int64 [N] each."""
        return self._given[step]

    def place(self, step: int) -> Place:
        """Where this rank's lanes are before a step, the next one or one of the last; else raises RuntimeError."""
        if step not in self._places:
            raise RuntimeError(f"step {step} of the stream is neither the next one nor one of the last")
        return self._places[step]
