"""Encoding: the records of a source, or of a part of it, become the files of a cache folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from distft.data import sources
from distft.data.cache_writer import CacheWriter
from distft.data.readers import refusal
from distft.data.records import Broken, Encoded, Encoder, Record, encode_many
from distft.data.sources import Piece, Source
from distft.errors import UserError
from distft.process.forks import without_tokenizer_threads

PART_BYTES = 8 << 20  # of a source

_KEEP_EVERY = 30.0  # seconds between two times at which what was encoded is made to last
_EVERY = 0.2  # seconds between two calls of check_stop and progress, but for a record that takes longer
_MOST = 256  # records at once


@dataclass(frozen=True)
class Work:
    """A source to encode.

    Records are encoded some at a time, as many as take little of the time between two calls of check_stop.

    Attributes:
        pieces: of the source, in order; encoded by other processes if there are several.
        workers: such processes at a time.
        check_stop: raises to give up. Called every few records, as is `progress`.
        progress: takes the number of records done.
    """

    source: Source
    encoder: Encoder
    pieces: Sequence[Piece]
    workers: int
    check_stop: Callable[[], None]
    progress: Callable[[int], None]

    def encode(
        self, writer: CacheWriter, piece: Piece, check_stop: Callable[[], None], progress: Callable[[int], None]
    ) -> None:
        """Encode the records of a piece that the writer does not have yet.

        Raises:
            UserError: for the first bad one.
        """
        kept, told = time.monotonic(), -math.inf
        rows, there, number, size = sources.read_piece(piece), writer.records, 0, 1
        while True:
            now = time.monotonic()
            if now - told > _EVERY:
                try:
                    check_stop()
                except BaseException:
                    writer.keep()
                    raise
                progress(number)
                told = now
                if now - kept > _KEEP_EVERY:
                    writer.keep()
                    kept = now
            chunk, end = _next(rows, size, now + _EVERY / 2)
            self._add(writer, chunk[max(0, there - number) :])
            if isinstance(end, Exception):
                raise end
            if end:
                return
            number += len(chunk)
            spent = time.monotonic() - now
            size = min(_MOST, 2 * size) if spent < _EVERY / 8 else max(1, size // 2) if spent > _EVERY / 2 else size

    def _add(self, writer: CacheWriter, rows: Sequence[Record | Broken]) -> None:
        """Encode some rows at once, and write down what became of them, one after the other."""
        with without_tokenizer_threads():  # there is a process for each core
            made = iter(encode_many(self.encoder, [row for row in rows if isinstance(row, Record)]))
        for row in rows:
            outcome = next(made) if isinstance(row, Record) else refusal(row)
            if isinstance(outcome, Encoded):
                writer.add(outcome)
            elif self.source.bad_budget is None:
                raise outcome
            else:
                writer.leave_out(row.where, str(outcome))


def _next(
    rows: Iterator[Record | Broken], most: int, until: float
) -> tuple[list[Record | Broken], bool | UserError | OSError]:
    """The next rows, one at least; and whether there are no more, or what it raises to read further: what is wrong with
    a row before that is to be said first. `until`: when to leave it at those that were read."""
    found: list[Record | Broken] = []
    try:
        while not found or (len(found) < most and time.monotonic() < until):
            if (row := next(rows, None)) is None:
                return found, True
            found.append(row)
    except (UserError, OSError) as error:
        return found, error
    return found, False
