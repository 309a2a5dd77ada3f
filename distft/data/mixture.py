"""The order of tasks in multi-task training: a pure function of the seed and the position."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from distft.data.corpus import Corpus
from distft.data.loader import Census, MicroBatch, RowOrder, Slots, by_cost, counted, drawn
from distft.data.order import hashes
from distft.data.records import Document

CYCLE = 256  # places in which each task, or source, has its exact share
_LARGEST = 709  # logarithm of what a float holds, nearly


@dataclass(frozen=True)
class Ingredient:
    """One task's data. `weight`: its share, in any unit; `sources`: their names, if it has several."""

    corpus: Corpus
    shuffle: RowOrder
    weight: float
    sources: Sequence[str] = ()


class Cycle:
    """Which of several kinds each place of an endless sequence is of: in each cycle all have the same shares, in an
    order of its own.

    Args:
        weights: their shares, in any unit.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self._shares, self._seed = shares(list(weights)), seed
        self._made = lru_cache(maxsize=4)(self._make)

    def _make(self, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The kind of each place of a cycle, and how many of that kind come before it."""
        kinds = np.repeat(np.arange(len(self._shares)), self._shares)
        kinds = kinds[np.argsort(hashes(self._seed, number, CYCLE), kind="stable")]
        before = np.zeros(CYCLE, np.int64)
        for kind, share in enumerate(self._shares):
            before[kinds == kind] = np.arange(share)
        return kinds, before

    def place(self, index: int) -> tuple[int, int]:
        """The kind of a place, and how many of that kind come before it in the whole sequence."""
        cycle, place = divmod(index, CYCLE)
        kinds, before = self._made(cycle)
        kind = int(kinds[place])
        return kind, cycle * self._shares[kind] + int(before[place])


class Mixture:
    """A loader of micro-batches that are each of one task.

    The stream is made of cycles; in each the tasks have the same shares, in an order of its own. So where each task
    stands in its data follows from the position in the stream, which is in the checkpoint.

    Args:
        sorts: as of `RowLoader`.
    """

    def __init__(self, parts: Mapping[str, Ingredient], slots: Slots, seed: int, sorts: bool = False) -> None:
        self._parts = {name: parts[name] for name in sorted(parts)}
        self._names = list(self._parts)
        self._slots, self._seed, self._sorts = slots, seed, sorts
        self._cycle = Cycle([part.weight for part in self._parts.values()], seed)

    def step(self, index: int) -> Iterator[MicroBatch]:
        size, a_step = self._slots.micro_batch, self._slots.global_batch // self._slots.micro_batch
        every = range(a_step) if self._sorts else self._slots.mine()
        places: dict[str, list[int]] = {name: [] for name in self._names}
        tasks = {}
        for micro in every:
            tasks[micro], rows = self._place(index, micro)
            places[tasks[micro]] += rows
        if self._sorts:  # the rows that a task has in this step, among its own micro-batches
            places = {name: by_cost(self._parts[name].shuffle, rows) for name, rows in places.items()}
        mine = self._slots.mine()
        for micro, name in tasks.items():
            own, places[name] = tuple(places[name][:size]), places[name][size:]
            if micro in mine:
                shuffle = self._parts[name].shuffle
                yield MicroBatch(micro, [shuffle.samples(place) for place in own], own, name)

    def _place(self, index: int, micro: int) -> tuple[str, range]:
        """Which task a micro-batch of a step is of, and which rows of its stream it has."""
        a_step = self._slots.global_batch // self._slots.micro_batch
        task, before = self._cycle.place(index * a_step + micro)
        first = before * self._slots.micro_batch
        return self._names[task], range(first, first + self._slots.micro_batch)

    def census(self, index: int) -> Census:
        fed: dict[str, list[range]] = {}
        for micro in range(self._slots.global_batch // self._slots.micro_batch):
            name, rows = self._place(index, micro)
            fed.setdefault(name, []).append(rows)
        parts = {}
        for name, micros in fed.items():  # micro-batches of a task follow each other in its stream
            rows, part = range(micros[0].start, micros[-1].stop), self._parts[name]
            parts[name] = counted(part.corpus, part.shuffle, rows, len(micros), len(rows), part.sources)
        return Census(parts=parts)

    def documents(self, micro: MicroBatch) -> list[list[Document]]:
        assert micro.part is not None
        rows = drawn(self._parts[micro.part].corpus, micro, self._seed)
        return [[replace(document, part=micro.part) for document in row] for row in rows]


def weights_of(rows: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Of each task, rows ** (1 / temperature), in a unit that keeps the largest within what a float holds."""
    power, most = 1 / temperature, max(rows.values())
    unit = most if power * math.log(most) > _LARGEST else 1
    return {name: (number / unit) ** power for name, number in rows.items()}


def shares(weights: list[float]) -> list[int]:
    """Places of each kind in a cycle, at least one, by largest remainders."""
    exponent = math.frexp(max(weights))[1]
    weights = [math.ldexp(weight, -exponent) for weight in weights]  # their sum is finite, and no digit changes
    exact = np.array(weights) / sum(weights) * (CYCLE - len(weights))
    found = np.floor(exact).astype(int)
    rest = CYCLE - len(weights) - int(found.sum())
    found[np.argsort(found - exact, kind="stable")[:rest]] += 1
    return [int(one) + 1 for one in found]
