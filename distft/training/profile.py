"""The profile of an attempt: follows a few steps with torch's profiler, and tells where their time and memory went.

Steps of a run are the same with and without it: it marks spans and looks at clocks. It begins after two steps, in which
caches fill. When its steps are done, or the run, each rank reads its own trace (`step_parts`) and rank 0 puts them
together (`profile_report`). An attempt that is told to stop reads nothing: its seconds are counted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, record_function

from distft.process import distributed, environment, pulse
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.run.folder import RunDir
from distft.run.profile import OTHER, Wanted
from distft.training.memory import MemoryMeter
from distft.training.module_spans import ModuleSpans
from distft.training.profile_memory import PhaseMemory
from distft.training.throughput import Meter
from distft.training.trace import LABEL, STEP

WARM_UP = 2  # steps before the first one that is profiled
HISTORY = 200_000  # allocations of a GPU that a snapshot of its memory keeps


class Profiling(Protocol):
    """What the loop tells of itself."""

    def step(self, number: int, total: int) -> AbstractContextManager[None]:
        """Around step `number` of a run of `total` steps, with the evaluation and the save after it."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Around a phase of a step, which has the name of a part (`run.profile`)."""

    def settle(self, stop: bool, over: bool) -> None:
        """After a step: report if it was the last one. Collective then; both values are the same on all ranks."""


class NoProfile:
    """Nobody asked for one."""

    _nothing = nullcontext()

    def step(self, number: int, total: int) -> AbstractContextManager[None]:
        return self._nothing

    def phase(self, name: str) -> AbstractContextManager[None]:
        return self._nothing

    def settle(self, stop: bool, over: bool) -> None:
        pass


@dataclass(frozen=True)
class Subject:
    """What is profiled: an attempt on one rank.

    Attributes:
        model: is called for forward passes.
        meter, memory: of the loop; the profile's own seconds and looks are kept from them.
    """

    run: RunDir
    attempt: int
    ranks: Ranks
    console: Console
    model: torch.nn.Module
    meter: Meter
    memory: MemoryMeter


class Profile:
    """The first steps of an attempt after `WARM_UP`, as far as there are any."""

    def __init__(self, wanted: Wanted, subject: Subject) -> None:
        self._wanted, self._subject = wanted, subject
        self._seen = self._taken = self._first = 0
        self._seconds = 0.0
        self._profiler: torch.profiler.profile | None = None
        self._over = False

    @contextmanager
    def step(self, number: int, total: int) -> Iterator[None]:
        if self._profiler is None and not self._over and self._seen >= min(WARM_UP, total - number):
            self._first = number
            self._profiler = self._begin()
        self._seen += 1
        if self._profiler is None:
            yield
            return
        began = time.perf_counter()
        with record_function(STEP):
            yield
        self._seconds += time.perf_counter() - began
        self._taken += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self._profiler is None:
            yield
            return
        around = self._memory.enter(name)
        with record_function(LABEL + name):
            yield
        self._memory.enter(around)

    def settle(self, stop: bool, over: bool) -> None:
        if self._profiler is None:
            return
        if stop:
            self._end()
            steps = f"{self._taken} of {self._wanted.steps} steps"
            self._subject.console.say(f"the profile was given up after {steps}: the run was told to stop")
        elif over or self._taken == self._wanted.steps:
            self._report(self._end())

    def _begin(self) -> torch.profiler.profile:
        on_gpu = self._subject.ranks.device.type == "cuda"
        if on_gpu and self._wanted.trace:
            torch.cuda.memory._record_memory_history(max_entries=HISTORY)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        profiler = torch.profiler.profile(activities=activities)
        self._spans = ModuleSpans(self._subject.model)
        profiler.start()
        distributed.sum_over_ranks([0.0])  # a rank whose profiler starts slowly is not slow
        self._memory = PhaseMemory(self._subject.ranks.device, self._subject.memory)
        self._subject.meter.restart()
        return profiler

    def _end(self) -> torch.profiler.profile:
        """The profiler still runs: to stop it takes long."""
        assert self._profiler is not None
        ended, self._profiler, self._over = self._profiler, None, True
        self._spans.remove()
        self._memory.end()
        return ended

    def _report(self, profiler: torch.profiler.profile) -> None:
        from distft.training import profile_report

        subject, steps = self._subject, f"{self._first} to {self._first + self._taken - 1}"
        pulse.at(f"the profile of steps {steps}")
        taken = profile_report.Taken(
            run=subject.run,
            attempt=subject.attempt,
            first_step=self._first,
            steps=self._taken,
            seconds=self._seconds,
            memory={name: bytes_ for name, bytes_ in self._memory.peaks.items() if name != OTHER or bytes_},
            keeps_trace=self._wanted.trace,
        )
        profile_report.report(taken, profiler, subject.ranks, subject.console)
        subject.meter.restart()


def asked_for(subject: Subject) -> Profiling:
    """What the launcher of this rank was told."""
    wanted = Wanted.of_text(os.environ.get(environment.PROFILE, ""))
    return NoProfile() if wanted is None else Profile(wanted, subject)
