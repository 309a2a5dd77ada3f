"""The record of a run: metrics.jsonl always; W&B, TensorBoard and others beside it, for which training never waits.

The local file is the truth. Each other tracker has a thread of its own; whatever goes wrong in it is said once in the
log and changes nothing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from distft import plugins
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.run.records import MetricsRecord
from distft.run.tensorboard_tracker import TensorBoardTracker
from distft.run.wandb_tracker import WandbTracker

FINISH_SECONDS = 10.0  # less than what is left of a job that stops before its time limit, see deadline.LEAVE_SECONDS


class Tracker(Protocol):
    def log(self, record: MetricsRecord) -> None:
        """Keep one record; it has one of the keys in `records.KINDS`."""

    def finish(self) -> None:
        """Everything logged so far is kept, or given up."""


class Nothing:
    """Keeps nothing: ranks other than 0."""

    def log(self, record: MetricsRecord) -> None:
        pass

    def finish(self) -> None:
        pass


class Jsonl:
    """One JSON object per line, appended; each line is in the file when `log` returns."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # a line that a crash cut off

    def log(self, record: MetricsRecord) -> None:
        os.write(self._descriptor, (json.dumps(record) + "\n").encode())

    def finish(self) -> None:
        os.close(self._descriptor)


class InBackground:
    """A tracker that is made in a thread of its own and fed from a queue; nothing here waits or raises.

    Args:
        name: what it is called in messages.
        make: makes the tracker; it runs in the thread.
    """

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self._name, self._make = name, make
        self._queue: queue.Queue[MetricsRecord | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, record: MetricsRecord) -> None:
        if self._thread.is_alive():
            self._queue.put(record)

    def close(self) -> None:
        """There are no more records."""
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Until it has taken everything, or is given up."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._give_up("it did not take everything in time")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (record := self._queue.get()) is not None:
                tracker.log(record)
            tracker.finish()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises, training goes on
            self._give_up(str(error) or type(error).__name__)

    def _give_up(self, why: str) -> None:
        print(f"{self._name} is given up for this attempt ({why}); metrics.jsonl has everything", flush=True)


class All:
    """The local record first, then the others."""

    def __init__(self, local: Tracker, others: Sequence[InBackground]) -> None:
        self._local, self._others = local, others

    def log(self, record: MetricsRecord) -> None:
        record = {**record, "time": time.time()}
        self._local.log(record)
        for other in self._others:
            other.log(record)

    def finish(self) -> None:
        """Waits at most FINISH_SECONDS for all of them together."""
        self._local.finish()
        deadline = time.monotonic() + FINISH_SECONDS
        for other in self._others:
            other.close()
        for other in self._others:
            other.wait(max(0.0, deadline - time.monotonic()))


def check(recipe: Recipe) -> None:
    """Raises UserError if a tracker that the recipe names is not installed."""
    if recipe.track.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "track.tensorboard: the library tensorboard is not installed; install distft[tensorboard], or leave "
            "track.tensorboard out"
        )
    installed = plugins.names(plugins.TRACKERS) if recipe.track.others else []
    for name in recipe.track.others:
        if name not in installed:
            try:
                plugins.find(plugins.TRACKERS, name, "tracker")  # says what is wrong; nothing is imported
            except UserError as error:
                raise UserError(f"track.others: {error}") from None


def trackers(recipe: Recipe, run: RunDir, first: bool) -> Tracker:
    """All trackers of a run as one; only rank 0 (`first`) records."""
    if not first:
        return Nothing()
    local = Jsonl(run.metrics)
    return All(local, [InBackground(name, make) for name, make in beside(recipe, run)])


def beside(recipe: Recipe, run: RunDir) -> Iterator[tuple[str, Callable[[], Tracker]]]:
    """Name and maker of each tracker beside metrics.jsonl."""
    if recipe.track.wandb != "off":
        yield "W&B", partial(WandbTracker, recipe, run)
    if recipe.track.tensorboard:
        yield "TensorBoard", partial(TensorBoardTracker, run, lines=run.lines())
    for name in recipe.track.others:
        yield name, partial(make_other, name, recipe, run)


def make_other(name: str, recipe: Recipe, run: RunDir) -> Tracker:
    """The tracker of another package; it is imported here."""
    made: Tracker = plugins.find(plugins.TRACKERS, name, "tracker")(recipe, run)
    return made
