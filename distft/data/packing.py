"""Packing: which documents share a row of tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distft.data.order import order, stable_order

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Row i holds `documents[offsets[i]:offsets[i + 1]]`. `offsets` int64 [R + 1], `documents` int64 [N]."""

    offsets: Int64s
    documents: Int64s

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> Int64s:
        """Ids of the documents in row i, int64 [k], k > 0."""
        return self.documents[self.offsets[i] : self.offsets[i + 1]]


def one_per_row(n: int) -> Rows:
    """n rows, row i holding document i."""
    numbers = np.arange(n + 1, dtype=np.int64)
    return Rows(numbers, numbers[:n])


def pack(lengths: npt.NDArray[np.int32], row_tokens: int, seed: int) -> Rows:
    """Best-fit decreasing: longest first, each into the fullest row that has room. Every document once.

    `lengths` is integer [N], tokens of each document, in 1..row_tokens (else ValueError). Documents of one length
    come in an order hashed from `seed`. Lengths are few, so all documents of one length are placed at once.
    """
    if len(lengths) == 0:
        return one_per_row(0)
    ids = _longest_first(lengths, row_tokens, seed)
    sizes = lengths[ids]
    ends = [*np.flatnonzero(np.diff(sizes)) + 1, len(ids)]

    room = _Room(row_tokens)
    row_of = np.empty(len(ids), dtype=np.int32 if len(ids) < 2**31 else np.int64)  # in the order of `ids`
    begin = 0
    for end in map(int, ends):
        size = int(sizes[begin])
        while begin < end:
            begin += room.place(size, row_of[begin:end])

    offsets = np.zeros(room.rows + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of, minlength=room.rows), out=offsets[1:])
    return Rows(offsets, ids[stable_order(row_of)])


def bucket(sizes: npt.NDArray[np.int32], row_tokens: int, seed: int) -> Rows:
    """Documents of similar sizes, as many a row as fit when all are padded to the largest. Every document once.

    A step of so many rows then costs so many tokens, whatever the lengths. `sizes` is integer [N] in 1..row_tokens
    (else ValueError).
    """
    ids = _longest_first(sizes, row_tokens, seed)
    offsets, begin = [0], 0
    while begin < len(ids):
        begin = min(len(ids), begin + row_tokens // int(sizes[ids[begin]]))  # the first is the largest
        offsets.append(begin)
    return Rows(np.array(offsets, dtype=np.int64), ids)


def _longest_first(sizes: npt.NDArray[np.int32], row_tokens: int, seed: int) -> Int64s:
    """Ids by size, those of one size in an order hashed from `seed`: int64 [N]. Raises ValueError as `pack`."""
    if len(sizes) and (sizes.min() < 1 or sizes.max() > row_tokens):
        raise ValueError(f"sizes must be in 1..{row_tokens}, found {sizes.min()}..{sizes.max()}")
    ids = order(seed, 0, len(sizes))
    return ids[stable_order(row_tokens - sizes[ids])]


class _Room:
    """Open rows by the tokens they have left."""

    def __init__(self, row_tokens: int) -> None:
        self.rows = 0
        self._row_tokens = row_tokens
        self._left: list[int] = []  # sorted keys of _open
        self._open: dict[int, list[Int64s]] = {}  # tokens left -> rows

    def place(self, size: int, row_of: npt.NDArray[Any]) -> int:
        """Writes the rows of the first documents into `row_of` (integer [m], m > 0) and returns how many."""
        left, rows = self._best(size, len(row_of))
        # A row just used is the fullest that has room, so best fit goes on filling it: `each` documents a row.
        each = left // size
        full = min(len(rows), len(row_of) // each)
        row_of[: full * each] = np.repeat(rows[:full], each)
        self._put(left - each * size, rows[:full])
        placed, some = full * each, 0
        if full < len(rows) and placed < len(row_of):
            some = len(row_of) - placed  # fewer than `each`: the last documents of this size
            row_of[placed:] = rows[full]
            self._put(left - some * size, rows[full : full + 1])
        self._put(left, rows[full + (some > 0) :])
        return placed + some

    def _best(self, size: int, documents: int) -> tuple[int, Int64s]:
        """Takes out the rows that fit `size` best, or opens as many as are needed."""
        at = bisect_left(self._left, size)
        if at < len(self._left):
            left = self._left.pop(at)
            return left, np.concatenate(self._open.pop(left))
        first, each = self.rows, self._row_tokens // size
        self.rows += -(-documents // each)
        return self._row_tokens, np.arange(first, self.rows, dtype=np.int64)

    def _put(self, left: int, rows: Int64s) -> None:
        if left == 0 or len(rows) == 0:
            return
        if left not in self._open:
            insort(self._left, left)
            self._open[left] = []
        self._open[left].append(rows)
