"""Parts of a source, encoded by several processes: those of the one that writes, and of others on other cores.

Where a source is cut depends on its bytes alone. Each part is encoded by itself, into a folder that goes on by itself
after a kill, and is appended when all parts before it are: what is written is what one process would have written.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distft.data import sources
from distft.data.cache_writer import CacheWriter, Progress
from distft.data.crew import Crew, Offer, Told
from distft.data.encoding import Work
from distft.data.records import encode_many
from distft.data.sources import Piece, Source
from distft.data.text_lines import Stretch
from distft.errors import UserError
from distft.process.forks import Forks

SILENCE_SECONDS = 30.0  # after which what others have taken, and do not get on with, is encoded here
_POLL = 0.02  # seconds between two looks at the processes
_LOOK = 0.5  # seconds between two looks at what others do


def encode(work: Work, writer: CacheWriter, crew: Crew, key: str) -> None:
    """Encode the records that the writer does not have yet, and have others take parts.

    Args:
        key: of source and encoder.

    Raises:
        UserError: for the first bad record of the source, whichever part was the first to meet one.
    """
    if len(work.pieces) == 1:
        work.encode(writer, work.pieces[0], work.check_stop, work.progress)
        return
    _remove(writer.folder, writer.parts)  # a kill came between the two steps of `_append`
    with _offered(work, writer, crew, key), Forks() as forks:
        _Leader(work, writer, crew, forks).encode()
    _remove(writer.folder, len(work.pieces))


@contextmanager
def _offered(work: Work, writer: CacheWriter, crew: Crew, key: str) -> Iterator[None]:
    """Meanwhile others may take parts."""
    if crew.is_alone:
        yield
        return
    for left in writer.folder.glob("offer-*"):
        left.unlink(missing_ok=True)
    path = writer.folder / f"offer-{uuid.uuid4().hex}.json"
    numbers = {str(file.spec): number for number, file in enumerate(sources.files_of(work.source))}
    pieces = [[[numbers[str(file.spec)], *astuple(place)] for file, place in piece] for piece in work.pieces]
    path.write_text(json.dumps(pieces), encoding="utf-8")
    cores = sorted(os.sched_getaffinity(0))
    crew.offer(Offer(crew.source, key, str(writer.folder), path.name, writer.parts, cores))
    try:
        yield
    finally:
        crew.end()
        path.unlink(missing_ok=True)


def pieces_of(offer: Offer, source: Source) -> list[Piece] | None:
    """Where the parts are that were offered; None if this process sees another disk than the one that offers them."""
    try:
        known = json.loads((Path(offer.folder) / offer.file).read_text(encoding="utf-8"))
    except OSError:
        return None
    files = sources.files_of(source)
    return [[(files[number], Stretch(*place)) for number, *place in piece] for piece in known]


def help_out(work: Work, offer: Offer, crew: Crew) -> None:
    """Encode parts that were offered, until none is left. What cannot be done here is left to the leader."""
    folder, counted, looked, all_taken = Path(offer.folder), 0, 0.0, False
    with Forks() as forks:
        here = _Here(work, forks)
        while not (all_taken and len(forks) == 0):
            work.check_stop()
            while not all_taken and len(forks) < work.workers:
                number = offer.first + crew.take()
                all_taken = number >= len(work.pieces)
                if not all_taken:
                    here.start(number, _place(folder, number))
            for number, error in forks.ended():
                crew.tell(number, _told(error, here.counts[number]))
                all_taken |= error is not None
            if (now := time.monotonic()) - looked > _LOOK:
                looked = now
                if crew.is_over():
                    return
            if (done := int(here.counts.sum())) > counted:
                crew.add(done - counted)
                work.progress(done)
                counted = done
            time.sleep(_POLL)


def _told(error: Exception | None, records: int) -> Told:
    if error is None:
        return Told(records=int(records))
    return Told(refused=str(error)) if isinstance(error, UserError) else Told()


class _Here:
    """Parts that child processes of this one encode.

    Attributes:
        counts: int64 [parts], the records done of each, in memory that they share.
    """

    def __init__(self, work: Work, forks: Forks) -> None:
        self._work, self._forks = work, forks
        self.counts: npt.NDArray[np.int64] = np.frombuffer(mmap.mmap(-1, 8 * len(work.pieces)), np.int64)
        encode_many(work.encoder, [])  # what it needs for any records it makes now, and the processes share it

    def start(self, number: int, place: Path) -> None:
        self._forks.start(number, partial(self._encode, number, place))

    def _encode(self, number: int, place: Path, check_stop: Callable[[], None]) -> None:
        """In a process of its own."""

        def show(records: int) -> None:
            self.counts[number] = records

        with CacheWriter(place, self._work.encoder.columns) as writer:
            self._work.encode(writer, self._work.pieces[number], check_stop, show)
            writer.keep()
            show(writer.records)


class _Leader:
    """The process that appends all parts, and encodes its share of them."""

    def __init__(self, work: Work, writer: CacheWriter, crew: Crew, forks: Forks) -> None:
        self._work, self._writer, self._crew, self._forks = work, writer, crew, forks
        self._here = _Here(work, forks)
        self._first, self._all_taken = writer.parts, False
        self._places: dict[int, Path] = {}  # of parts that are encoded here
        self._left: deque[int] = deque()  # parts that others have taken and have left to us
        self._done: dict[int, int] = {}  # records of parts that are whole
        self._refused: dict[int, UserError] = {}
        self._elsewhere = self._appended = 0  # records that others have encoded, and of these that were appended
        self._heard = self._looked = time.monotonic()
        self._shown = -1

    def encode(self) -> None:
        while (head := self._writer.parts) < len(self._work.pieces):
            self._work.check_stop()
            self._start()
            self._look_here()
            if time.monotonic() - self._looked > _LOOK:
                self._look_elsewhere(head)
            if head in self._refused:
                raise self._refused[head]
            self._show(head)
            if head not in self._done:
                time.sleep(_POLL)
                continue
            _append(self._writer, self._places.get(head, _place(self._writer.folder, head)))
            self._appended += 0 if head in self._places else self._done[head]

    def _start(self) -> None:
        while len(self._forks) < self._work.workers and (found := self._next()) is not None:
            number, place = found
            self._places[number] = place
            self._here.start(number, place)

    def _next(self) -> tuple[int, Path] | None:
        """A part to encode, and where. Those before a refused one are all taken already."""
        folder = self._writer.folder
        if self._left:
            number = self._left.popleft()
            return number, folder / f"{_place(folder, number).name}-again"  # the other one may still write
        if self._all_taken or self._refused:
            return None
        number = self._first + self._crew.take()
        if number < len(self._work.pieces):
            return number, _place(folder, number)
        self._all_taken, self._heard = True, time.monotonic()
        return None

    def _look_here(self) -> None:
        for number, error in self._forks.ended():
            if isinstance(error, UserError):
                self._refused[number] = error
            elif error is not None:
                raise error
            else:
                self._done[number] = int(self._here.counts[number])

    def _look_elsewhere(self, head: int) -> None:
        """What others have come to; what they do not get on with is left to us."""
        self._looked = now = time.monotonic()
        if (records := self._crew.add(0)) > self._elsewhere:
            self._elsewhere, self._heard = records, now
        unknown = [n for n in range(head, len(self._work.pieces)) if not self._is_known(n)]
        while unknown and (told := self._crew.told(unknown[0])) is not None and self._learn(unknown[0], told):
            unknown.pop(0)
        if not unknown or not self._all_taken:
            return
        if now - self._heard > SILENCE_SECONDS:
            self._left += unknown
        elif unknown[0] == head:
            self._work.progress(self._shown)  # to wait is to get on, for that long

    def _is_known(self, number: int) -> bool:
        return any(number in known for known in (self._places, self._done, self._refused, self._left))

    def _learn(self, number: int, told: Told) -> bool:
        """Whether that settles a part. A file system may show what another node has written somewhat later."""
        if told.refused is not None:
            self._refused[number] = UserError(told.refused)
        elif told.records is None:
            self._left.append(number)
        else:
            kept = Progress.read(_place(self._writer.folder, number))
            if kept is None or kept.records != told.records:
                return False
            self._done[number] = told.records
        return True

    def _show(self, head: int) -> None:
        now = self._writer.records + int(self._here.counts[head:].sum()) + self._elsewhere - self._appended
        if now > self._shown:
            self._work.progress(now)
            self._shown = now


def _place(folder: Path, number: int) -> Path:
    return folder / f"part-{number}"


def _append(writer: CacheWriter, place: Path) -> None:
    writer.append(place)
    writer.keep()
    shutil.rmtree(place)


def _remove(folder: Path, end: int) -> None:
    """Parts before this one, and those that were encoded in place of others."""
    for place in folder.glob("part-*"):
        number = place.name.removeprefix("part-")
        if not number.isdigit() or int(number) < end:
            shutil.rmtree(place, ignore_errors=True)
