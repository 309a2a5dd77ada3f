"""Console output during a run: a progress bar on a terminal, plain lines elsewhere.

A rank's own output goes to its log; rank 0 has in addition the console of whoever started the run
(DISTFT_CONSOLE_FD), and writes here what is meant for people.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO, cast

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distft.process import environment
from distft.process.streams import TolerantStream

LINE_SECONDS = 10.0  # between two plain lines


class Bar(Protocol):
    def at(self, done: int, note: str) -> None:
        """So much is done; `note` says how it goes."""

    def expect(self, total: int) -> None:
        """This is the total, or not much less: it was not known when the bar began."""


class Console:
    """Rank 0's view outward. Says nothing on other ranks."""

    def __init__(self, first: bool) -> None:
        descriptor = os.environ.get(environment.CONSOLE_FD)
        file = TolerantStream(os.fdopen(int(descriptor), "w")) if first and descriptor else sys.stderr
        self._rich = RichConsole(file=cast(TextIO, file), highlight=False, soft_wrap=True, quiet=not first)

    def say(self, text: str) -> None:
        self._rich.print(text, markup=False)

    @contextmanager
    def bar(self, what: str, total: int | None, done: int = 0) -> Iterator[Bar]:
        """Progress of `what`, from `done` to `total` (None: not known)."""
        if not self._rich.is_terminal:
            yield _Lines(self, what, total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._rich, refresh_per_second=4) as progress:
            yield _RichBar(progress, what, total, done)


class _RichBar:
    def __init__(self, progress: Progress, what: str, total: int | None, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=total, completed=done, note="")

    def at(self, done: int, note: str) -> None:
        self._progress.update(self._task, completed=done, note=note)

    def expect(self, total: int) -> None:
        self._progress.update(self._task, total=total)


class _Lines:
    """A line now and then: the first, the last, and one every `LINE_SECONDS` between them."""

    def __init__(self, console: Console, what: str, total: int | None) -> None:
        self._console, self._what, self._total = console, what, total
        self._next = 0.0
        self._begun: tuple[float, int] | None = None

    def at(self, done: int, note: str) -> None:
        now = time.monotonic()
        if now < self._next and done != self._total:
            return
        self._next = now + LINE_SECONDS
        begun = self._begun = self._begun or (now, done)
        parts = [f"{self._what} {done}" + (f"/{self._total}" if self._total is not None else "")]
        if note:
            parts.append(note)
        if self._total is not None and done > begun[1]:
            parts.append(f"ETA {duration((self._total - done) * (now - begun[0]) / (done - begun[1]))}")
        self._console.say(" · ".join(parts))

    def expect(self, total: int) -> None:
        self._total = total


def duration(seconds: float) -> str:
    """Like 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
