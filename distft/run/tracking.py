"""The record of a run: metrics.jsonl always; W&B beside it, which training never waits for.

The local file is the truth. W&B runs in a thread of its own, under the id fixed in run.json; whatever goes wrong
there is said once in the log and changes nothing.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from distft.recipe.schema import Recipe
from distft.run.folder import RunDir

FINISH_SECONDS = 10.0  # less than what is left of a job that stops before its time limit, see clock.LEAVE_SECONDS
Record = dict[str, Any]


class Tracker(Protocol):
    def log(self, record: Record) -> None:
        """Keep one record: of an optimizer step (it has `loss`) or of an evaluation (`eval_loss`)."""

    def finish(self) -> None:
        """Everything logged so far is kept, or given up."""


KINDS = ("loss", "eval_loss", "save_seconds", "non_finite", "ranks")  # each record has one of these keys


class Numbering:
    """Numbers for the rows of a W&B run: one for each thing that was recorded, in the order in which it came first.

    A step that two attempts have trained is one row, so all attempts, whatever reached W&B of them, fill one history.
    """

    def __init__(self, run: RunDir) -> None:
        self._numbers: dict[tuple[str, int], int] = {}
        for record in run.records():
            self.of(record)

    def of(self, record: Record) -> int:
        kind = next((kind for kind in KINDS if kind in record), "")
        return self._numbers.setdefault((kind, int(record["step"])), len(self._numbers))


class Nothing:
    """Keeps nothing: ranks other than 0, and W&B switched off."""

    def log(self, record: Record) -> None:
        pass

    def finish(self) -> None:
        pass


class Jsonl:
    """One JSON object a line, appended; each line is in the file when `log` returns."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # a line that a crash cut off

    def log(self, record: Record) -> None:
        os.write(self._descriptor, (json.dumps(record) + "\n").encode())

    def finish(self) -> None:
        os.close(self._descriptor)


class Wandb:
    """A W&B run, fed from a queue by a thread."""

    def __init__(self, recipe: Recipe, run: RunDir, wandb_id: str) -> None:
        self._recipe, self._run, self._id = recipe, run, wandb_id
        self._queue: queue.Queue[Record | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, record: Record) -> None:
        self._queue.put(record)

    def finish(self) -> None:
        self._queue.put(None)
        self._thread.join(FINISH_SECONDS)
        if self._thread.is_alive():
            give_up("it did not take everything in time")

    def _work(self) -> None:
        try:
            self._feed()
        except Exception as error:  # noqa: BLE001 - whatever W&B raises, training goes on
            give_up(str(error) or type(error).__name__)

    def _feed(self) -> None:
        numbering = Numbering(self._run)
        run = begin(self._recipe, self._run, self._id, self._recipe.track.wandb == "online")
        while (record := self._queue.get()) is not None:
            run.log(record, step=numbering.of(record))
        run.finish()


def give_up(why: str) -> None:
    print(f"W&B is given up for this attempt ({why}); metrics.jsonl has everything, see distft sync", flush=True)


def begin(recipe: Recipe, run: RunDir, wandb_id: str, online: bool) -> Any:
    """A W&B run, or another piece of it."""
    import wandb

    begun = wandb.init(
        id=wandb_id,
        name=recipe.name,
        project=recipe.track.project,
        entity=recipe.track.entity,
        mode="online" if online else "offline",
        resume="allow" if online else None,  # offline ignores it: each attempt is a folder of its own
        dir=str(run.path),
        config=recipe.model_dump(mode="json"),
        settings=wandb.Settings(x_disable_meta=True, save_code=False, console="off", silent=True),
    )
    begun.define_metric("*", step_metric="step")
    return begun


class Both:
    """The local record first, then W&B."""

    def __init__(self, local: Tracker, remote: Tracker) -> None:
        self._local, self._remote = local, remote

    def log(self, record: Record) -> None:
        record = {**record, "time": time.time()}
        self._local.log(record)
        self._remote.log(record)

    def finish(self) -> None:
        self._local.finish()
        self._remote.finish()


def tracker(recipe: Recipe, run: RunDir, first: bool) -> Tracker:
    """The tracker of a rank; only rank 0 (`first`) records."""
    if not first:
        return Nothing()
    remote = Nothing() if recipe.track.wandb == "off" else Wandb(recipe, run, run.read().wandb_id)
    return Both(Jsonl(run.metrics), remote)
