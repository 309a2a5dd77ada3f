"""Pieces: parts of documents that are longer than a row. An index says where they are; the tokens stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from distft.data.records import Column, Document

SPLIT = "longer than a row were split"
DROPPED = "longer than a row were dropped"
EMPTY = "without anything to predict were dropped"
REPEATED = "duplicates of others were dropped"
PIECE = np.dtype([("document", "<i8"), ("begin", "<i4"), ("size", "<i4"), ("targets", "<i4")])
MANY = 1 << 40  # pieces: as many as there are
LONGEST = (1 << 31) - 1  # tokens: no document has more

Int64s = npt.NDArray[np.int64]


class Whole(Protocol):
    """What a corpus says of whole documents."""

    @property
    def sizes(self) -> npt.NDArray[np.int32]: ...

    @property
    def targets(self) -> npt.NDArray[np.int32]: ...

    def true_values(self, column: str, documents: Int64s, begins: Int64s, ends: Int64s) -> Int64s:
        """How many values of a column are true between these places of these documents, int64 [P]."""


class Cut(Protocol):
    """How a task cuts documents that are longer than a row. A value: its `repr` tells it from others."""

    @property
    def row_tokens(self) -> int:
        """The most that a piece takes of a row."""

    @property
    def note(self) -> str:
        """What is done to documents that are longer."""

    def pieces(self, whole: Whole) -> npt.NDArray[Any]:
        """Of all documents, in their order, PIECE [P]; a document that needs no cut is a piece."""

    def columns(self, document: Document, begin: int, size: int) -> Mapping[str, Column]:
        """Of a piece that is not the whole document."""


@dataclass(frozen=True)
class MarkedCut:
    """Cuts the columns `tokens` and `targets`. The first token of a piece is no target: nothing comes before it in its
    row.

    Args:
        drop: leave a longer document out rather than cut it.
    """

    row_tokens: int
    drop: bool

    @property
    def note(self) -> str:
        return DROPPED if self.drop else SPLIT

    def pieces(self, whole: Whole) -> npt.NDArray[Any]:
        long = whole.sizes > self.row_tokens
        found = places_of(whole.sizes, self.row_tokens, np.where(long, 0 if self.drop else MANY, 1))
        parts = long[found["document"]]
        found["targets"] = whole.targets[found["document"]]
        found["targets"][parts] = self._targets(whole, found[parts])
        return found

    def _targets(self, whole: Whole, parts: npt.NDArray[Any]) -> Int64s:
        """Of pieces of longer documents. A text of which all is learned need not be read for it."""
        documents, counts = parts["document"], parts["size"].astype(np.int64) - 1
        some = whole.targets[documents] < whole.sizes[documents] - 1
        begins, ends = (parts["begin"] + places for places in (1, parts["size"]))
        counts[some] = whole.true_values("targets", documents[some], begins[some], ends[some])
        return counts

    def columns(self, document: Document, begin: int, size: int) -> Mapping[str, Column]:
        targets = document["targets"][begin : begin + size].copy()
        targets[:1] = False
        return {"tokens": document["tokens"][begin : begin + size], "targets": targets}


def places_of(sizes: npt.NDArray[np.int32], room: int, most: Int64s) -> npt.NDArray[Any]:
    """Documents of these sizes as pieces of `room` tokens, the last one smaller, PIECE [P] without targets: of each
    document the first `most`. One that is empty is a piece."""
    numbers = np.minimum(most, np.maximum(1, -(-sizes // room)))
    documents = np.repeat(np.arange(len(sizes)), numbers)
    before = np.cumsum(numbers) - numbers  # pieces of the documents before each
    found = np.zeros(len(documents), PIECE)
    found["document"] = documents
    found["begin"] = (np.arange(len(documents)) - before[documents]) * room
    found["size"] = np.minimum(room, sizes[documents] - found["begin"])
    return found


@dataclass(frozen=True, eq=False)
class Pieces:
    """An index of pieces, PIECE [P], and how they were cut, if they were. `notes`: what was done to how many."""

    index: npt.NDArray[Any]
    cut: Cut | None
    notes: Mapping[str, int]

    def document(self, i: int, whole: Document) -> Document:
        """Piece i, of this document."""
        _, begin, size, targets = self.index[i].item()
        cut = None if size == whole.size else self.cut
        columns = whole.columns if cut is None else cut.columns(whole, begin, size)
        return Document(columns, size, targets, whole.record)
