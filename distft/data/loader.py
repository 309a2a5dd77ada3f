"""Which rows are fed when, and by whom: a pure function of the seed, the step and the rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from distft.data.encode import Corpus
from distft.data.order import order
from distft.data.packing import Rows
from distft.data.types import Document


@dataclass(frozen=True)
class MicroBatch:
    """What one rank feeds the model at once.

    Attributes:
        index: of the micro-batch within its step, over all ranks; dropout is seeded by it.
        samples: ids of the documents, by row; an empty row is padding.
    """

    index: int
    samples: list[list[int]]


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


class Loader:
    """Rows of all epochs as one endless sequence, cut into steps.

    Row number i of the sequence is in epoch i // rows; each epoch is in an order of its own.

    Args:
        total: rows to feed in all; what a last step lacks is padding. None: no end.
        shuffle: False keeps the order of the data (evaluation).
    """

    def __init__(
        self, corpus: Corpus, rows: Rows, slots: Slots, seed: int, total: int | None = None, shuffle: bool = True
    ) -> None:
        self._corpus, self._rows, self._slots, self._seed = corpus, rows, slots, seed
        self._total, self._shuffle = total, shuffle
        self._order = lru_cache(maxsize=2)(self._make_order)

    def _make_order(self, epoch: int) -> npt.NDArray[np.int64]:
        return order(self._seed, epoch, len(self._rows)) if self._shuffle else np.arange(len(self._rows))

    def step(self, index: int) -> Iterator[MicroBatch]:
        """This rank's micro-batches of step `index`, counted from 0."""
        for micro in self._slots.mine():
            first = index * self._slots.global_batch + micro * self._slots.micro_batch
            yield MicroBatch(micro, [self._samples(first + i) for i in range(self._slots.micro_batch)])

    def _samples(self, index: int) -> list[int]:
        if self._total is not None and index >= self._total:
            return []
        epoch, position = divmod(index, len(self._rows))
        samples: list[int] = self._rows.row(int(self._order(epoch)[position])).tolist()
        return samples

    def documents(self, micro: MicroBatch) -> list[list[Document]]:
        """The documents of a micro-batch, by row."""
        return [[self._corpus.document(sample) for sample in row] for row in micro.samples]
