"""The training session: everything that one attempt holds on one rank, and how it is restored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distft.checkpoint import state, store
from distft.checkpoint.ahead import Verification
from distft.checkpoint.state import Identity, Progress
from distft.checkpoint.writer import Writer
from distft.data.loader import Loader
from distft.engine.deepspeed import Engine
from distft.model.adalora import Allocator
from distft.model.context import RunContext
from distft.model.reached import Reached
from distft.process import distributed, environment, stop_signals
from distft.process.console import Console
from distft.process.deadline import Clock
from distft.process.distributed import Ranks
from distft.recipe import changes
from distft.recipe.changes import Difference
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.run.lease import Fence
from distft.run.tracking import Tracker
from distft.tasks.protocol import Learned
from distft.training.datasets import HeldOut
from distft.training.feed import Feed
from distft.training.memory import MemoryMeter
from distft.training.profile import Profiling
from distft.training.streaming import Stream
from distft.training.throughput import Meter


@dataclass
class Session:
    """One attempt on one rank."""

    run: RunDir
    attempt: int
    context: RunContext
    ranks: Ranks
    console: Console
    track: Tracker
    clock: Clock
    fence: Fence
    task: Learned[Any]
    engine: Engine
    allocator: Allocator
    meter: Meter
    memory: MemoryMeter
    profile: Profiling
    loader: Loader
    feed: Feed
    held_out: Sequence[HeldOut]
    rows: int  # in an epoch
    total_rows: int | None  # after which steps are filled up with empty rows; None: never
    total_steps: int
    writer: Writer
    identity: Identity
    progress: Progress
    saved: int  # step of the newest checkpoint, written or being written
    reached: Reached | None = None  # of a run that begins
    stream: Stream | None = None  # of a run whose data are encoded while it trains

    @property
    def epoch(self) -> float:
        """How many times the data were fed. What fills up the last step of the last epoch does not count."""
        if self.stream is not None:
            return self.stream.epochs
        fed = self.progress.next_row
        return (fed if self.total_rows is None else min(fed, self.total_rows)) / self.rows

    @property
    def recipe(self) -> Recipe:
        return self.context.recipe

    def is_to_stop(self) -> bool:
        """Whether this rank was told to, or the job's time is over; the next sum over ranks makes it known to all."""
        return stop_signals.requested() or self.clock.out_of_time()


def verification(run: RunDir, ranks: Ranks, key: str = "checkpoint") -> Verification:
    """Of the checkpoints that rank 0 sees. Collective.

    Args:
        key: what it is called among the ranks; another one each time.
    """
    names = distributed.on_rank_0(ranks, key, lambda: [folder.name for folder in store.committed(run.checkpoints)])
    return Verification([run.checkpoints / name for name in names], ranks)


def restore(
    run: RunDir,
    engine: Engine,
    allocator: Allocator,
    identity: Identity,
    verified: Verification,
    console: Console,
) -> Progress:
    """Continue from the newest verified checkpoint; from the beginning where there was never one. Collective."""

    def check(folder: Path) -> str | None:
        """All ranks read, each another part, and all know what any has found."""
        found = distributed.gather_text(verified.flaw(folder) or "")
        return next(filter(None, found), None)

    folder, passed_over = state.newest(run.checkpoints, verified.folders, check)
    for sentence in passed_over:
        console.say(sentence)
    if folder is None:
        return Progress(step=0, next_row=0, useful_tokens=0, last_eval=0)
    stored = state.Stored(folder, verified.place)
    changes.agree(differences(stored.identity, identity), allowed_here(), f"{folder} does not match this run")
    stored.load_into(engine)
    allocator.load(stored.adapter)
    console.say(f"continuing after step {stored.progress.step} ({folder})")
    return stored.progress


def allowed_here() -> frozenset[str]:
    """What the launcher of this rank was told to allow."""
    return frozenset(filter(None, os.environ.get(environment.ALLOW, "").split(",")))


def differences(stored: Identity, now: Identity) -> list[Difference]:
    """Between what a checkpoint was written with and what there is now."""
    found = [Difference(changes.BASE_CONTENT, stored.base[:12], now.base[:12])] if stored.base != now.base else []
    if stored.tokenizer != now.tokenizer:
        found.append(Difference(changes.TOKENIZER, stored.tokenizer[:12], now.tokenizer[:12]))
    elif stored.rows != now.rows:
        found.append(Difference(changes.CONTENT, stored.rows[:12], now.rows[:12]))
    both = [(key, stored.settled[key], now.settled[key]) for key in stored.settled if key in now.settled]
    found += [Difference(*item) for item in both if item[1] != item[2]]
    names = sorted(stored.versions.keys() | now.versions.keys())
    versions = [(f"{changes.VERSIONS}.{name}", stored.versions.get(name), now.versions.get(name)) for name in names]
    return found + [Difference(*item) for item in versions if item[1] != item[2]]
