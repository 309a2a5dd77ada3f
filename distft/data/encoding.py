"""Encoding: the records of a source become the files of a cache folder, by several processes where it can be cut.

Where a source is cut depends on its bytes alone. Each part is encoded by itself, into a folder that goes on by itself
after a kill, and is appended when all parts before it are: what is written is what one process would have written.
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distft.data import sources
from distft.data.cache_writer import CacheWriter
from distft.data.readers import refusal
from distft.data.records import Broken, Encoded, Encoder, Record, encode_many
from distft.data.sources import Piece, Source
from distft.errors import UserError
from distft.process.forks import Forks, without_tokenizer_threads

PART_BYTES = 8 << 20  # of a source

_KEEP_EVERY = 30.0  # seconds between two times at which what was encoded is made to last
_EVERY = 0.2  # seconds between two calls of check_stop and progress, but for a record that takes longer
_MOST = 256  # records at once
_POLL = 0.02  # seconds between two looks at the processes


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


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

    def do(self, writer: CacheWriter) -> None:
        """Encode the records that the writer does not have yet.

        Raises:
            UserError: for the first bad record of the source, whichever part was the first to meet one.
        """
        if len(self.pieces) == 1:
            self._encode(writer, self.pieces[0], self.check_stop, self.progress)
        else:
            self._encode_parts(writer)

    def _encode(
        self, writer: CacheWriter, piece: Piece, check_stop: Callable[[], None], progress: Callable[[int], None]
    ) -> None:
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

    def _encode_parts(self, writer: CacheWriter) -> None:
        counts: npt.NDArray[np.int64] = np.frombuffer(mmap.mmap(-1, 8 * len(self.pieces)), np.int64)  # all share it
        places = [writer.folder / f"part-{number}" for number in range(len(self.pieces))]
        for place in places[: writer.parts]:  # a kill came between the two steps of `_append`
            shutil.rmtree(place, ignore_errors=True)
        begun, shown = writer.parts, -1
        done: set[int] = set()
        refused: dict[int, UserError] = {}
        encode_many(self.encoder, [])  # what it needs for any records it makes now, and the processes share it
        with Forks() as forks:
            while writer.parts < len(self.pieces):
                self.check_stop()
                while len(forks) < self.workers and begun < min([len(self.pieces), *refused]):
                    forks.start(begun, partial(self._encode_part, begun, places[begun], counts))
                    begun += 1
                for number, error in forks.ended():
                    if isinstance(error, UserError):
                        refused[number] = error
                    elif error is not None:
                        raise error
                    else:
                        done.add(number)
                if writer.parts in refused:
                    raise refused[writer.parts]
                if (now := writer.records + int(counts[writer.parts :].sum())) > shown:
                    self.progress(now)
                    shown = now
                if writer.parts in done:
                    _append(writer, places[writer.parts])
                else:
                    time.sleep(_POLL)

    def _encode_part(
        self, number: int, place: Path, counts: npt.NDArray[np.int64], check_stop: Callable[[], None]
    ) -> None:
        """In a process of its own. `counts`: int64 [parts], the records done of each, in shared memory."""

        def show(records: int) -> None:
            counts[number] = records

        with CacheWriter(place, self.encoder.columns) as writer:
            self._encode(writer, self.pieces[number], check_stop, show)
            writer.keep()
            show(writer.records)


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


def _append(writer: CacheWriter, place: Path) -> None:
    writer.append(place)
    writer.keep()
    shutil.rmtree(place)
