"""Lanes of a stream: each reads windows of blocks of a source, makes rows of their documents, and gives them in order.

Where a lane is, is a cursor: the window, and how many of its rows were given. Which rows a window makes depends on the
sizes of all its documents, so a cursor brings along those that are known: who goes on from it encodes no more than what
it is going to give.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from distft.data import block_order
from distft.data.block_order import BlockOrder
from distft.data.packing import Rows
from distft.data.records import Document
from distft.errors import UserError

PART = 40  # bits: part p of record r has the id r + (p << 40)

Arrange = Callable[[npt.NDArray[np.int32]], Rows]
Sample = tuple[int, Document]  # its id, and what it is
Row = Sequence[Sample]
Sizes = list[tuple[int, ...]]  # of the documents of each record


@dataclass(frozen=True)
class Cursor:
    """Where a lane is in a source.

    Attributes:
        window: which it reads.
        given: rows of it that were given.
        rows: it has; 0: not known.
        sizes: of the documents of its records, see `written`; empty: not known.
        ahead: those of the next window, as far as they are known.
    """

    window: int = 0
    given: int = 0
    rows: int = 0
    sizes: str = ""
    ahead: str = ""


class Documents(Protocol):
    """The documents of a source, by blocks of its records."""

    @property
    def name(self) -> str:
        """Of the source, for people."""

    def __len__(self) -> int:
        """How many blocks there are."""

    def count(self, block: int) -> int:
        """The records of a block."""

    def of(self, block: int, first: int = 0) -> Iterator[Sequence[Document]]:
        """The documents of each record of a block, from its record `first` on. Raises UserError."""


def accept(documents: Sequence[Document]) -> None:
    pass


@dataclass(frozen=True)
class Stock:
    """A source as lanes read it.

    Attributes:
        arrange: makes rows of documents by their sizes, int32 [N].
        check: is given the documents of each record; raises UserError if the model does not take them.
    """

    documents: Documents
    order: BlockOrder
    arrange: Arrange
    check: Callable[[Sequence[Document]], None] = accept


class Window:
    """The documents of a window of a lane, encoded as they are wanted.

    Args:
        sizes: of the documents of its first records, which are encoded again only if they are given.
    """

    def __init__(self, stock: Stock, lane: int, number: int, sizes: Sizes) -> None:
        self._stock, self._lane, self.number = stock, lane, number
        blocks = stock.order.window(lane, number)
        self._records = [(block, place) for block in blocks for place in range(stock.documents.count(block))]
        self._made: dict[int, Sequence[Document]] = {}  # of records by their places in the window
        self._coming: Iterator[Sequence[Document]] | None = None
        self.sizes = sizes if len(sizes) <= len(self._records) else []

    @property
    def left(self) -> int:
        """Records whose documents are not known yet."""
        return len(self._records) - len(self.sizes)

    def encode(self, records: int) -> None:
        """So many more, if there are as many."""
        if self._coming is None:
            self._coming = self._from(len(self.sizes))
        for made in islice(self._coming, records):
            self._made[len(self.sizes)] = made
            self.sizes.append(tuple(document.size for document in made))

    def _from(self, place: int) -> Iterator[Sequence[Document]]:
        while place < len(self._records):
            block, first = self._records[place]
            for made in self._stock.documents.of(block, first):
                self._stock.check(made)
                yield made
                place += 1

    def rows(self) -> list[list[tuple[int, int]]]:
        """All rows in their order: of each document its record's place, and which of the record's it is."""
        self.encode(self.left)
        every = [(place, part) for place, sizes in enumerate(self.sizes) for part in range(len(sizes))]
        rows = self._stock.arrange(np.array([size for sizes in self.sizes for size in sizes], np.int32))
        order = self._stock.order.rows(self._lane, self.number, len(rows)).tolist()
        return [[every[document] for document in rows.row(row).tolist()] for row in order]

    def sample(self, place: int, part: int) -> Sample:
        if place not in self._made:
            self._made[place] = next(self._from(place))
        document = self._made[place][part]
        return document.record + (part << PART), document


class Lane:
    """The rows of one lane from one source, from a cursor on. Nothing is encoded before its first row is wanted."""

    def __init__(self, stock: Stock, lane: int, cursor: Cursor) -> None:
        self._stock, self._lane = stock, lane
        self._given, self._count = cursor.given, cursor.rows
        self._rows: list[list[tuple[int, int]]] | None = None
        self._window = Window(stock, lane, cursor.window, read(cursor.sizes))
        self._ahead = Window(stock, lane, cursor.window + 1, read(cursor.ahead))

    def mark(self) -> Mark:
        """Where it is now."""
        known = len(self._window.sizes), len(self._ahead.sizes)
        return Mark(self._window, self._ahead, self._given, self._count, *known)

    def row(self) -> Row:
        """The next row. Raises UserError if nothing can be learned from the source."""
        if self._rows is None:
            self._open(self._given)
        passed = 0
        while self._given >= self._count:
            passed += block_order.size(self._window.number)
            if passed > len(self._stock.documents) + block_order.LARGEST:
                raise UserError(f"none of the records of {self._stock.documents.name} can be used for training")
            self._go_on()
        assert self._rows is not None
        left = self._count - self._given
        self._ahead.encode(-(-self._ahead.left // left))  # each step does its share of the next window
        row = [self._window.sample(place, part) for place, part in self._rows[self._given]]
        self._given += 1
        if left == 1:
            self._go_on()
        return row

    def _open(self, given: int) -> None:
        self._rows = self._window.rows()
        self._given, self._count = given, len(self._rows)

    def _go_on(self) -> None:
        self._window, self._ahead = self._ahead, Window(self._stock, self._lane, self._ahead.number + 1, [])
        self._open(0)


@dataclass(frozen=True)
class Mark:
    """Where a lane was at some time; what is kept of it is little, for it is taken down at each step.

    Attributes:
        known: records of the window, and of the one ahead, whose sizes were known.
    """

    window: Window = field(repr=False)
    ahead: Window = field(repr=False)
    given: int
    rows: int
    known: int
    known_ahead: int

    def cursor(self) -> Cursor:
        sizes = written(self.window.sizes[: self.known]), written(self.ahead.sizes[: self.known_ahead])
        return Cursor(self.window.number, self.given, self.rows, *sizes)

    @property
    def read(self) -> float:
        """Blocks whose rows were given; of a window that part whose rows were."""
        share = self.given / self.rows if self.rows else 0.0
        return block_order.begin(self.window.number) + share * block_order.size(self.window.number)


def written(sizes: Sizes) -> str:
    """As text: base64 of zlib of int32 [1 + R + D], the number R of records, of how many documents each is, and the
    sizes of all D."""
    if not sizes:
        return ""
    numbers = [len(sizes), *map(len, sizes), *(size for own in sizes for size in own)]
    return base64.b64encode(zlib.compress(np.array(numbers, "<i4").tobytes())).decode()


def read(text: str) -> Sizes:
    """What `written` has made a text of."""
    if not text:
        return []
    numbers = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").tolist()
    counts, sizes = numbers[1 : 1 + numbers[0]], iter(numbers[1 + numbers[0] :])
    return [tuple(islice(sizes, count)) for count in counts]
