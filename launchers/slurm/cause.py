"""The cause of an attempt's end, in a few fixed words, from SLURM's records and the attempt's own.

preempted, time limit, node failure, node lost, out of memory, crash, hang, cancelled; details follow in brackets or
after a colon.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections import Counter
from collections.abc import Sequence

from distft.errors import PREEMPTED
from distft.process import environment
from distft.run.folder import Attempt, Run, RunDir
from launchers.attempt import Verdict, close, last_sign_of_life
from launchers.slurm import scheduler
from launchers.slurm.scheduler import Accounted

EARLY_SECONDS = 90.0  # SLURM sends the lead signal up to a minute early, and saving takes time
UNKNOWN = "killed"
MOST_FAILURES = 2  # on one host


def stop_cause(verdict: Verdict, signals: Sequence[signal.Signals], ends: float | None) -> Verdict:
    """A stop that nobody asked for was the clock's; one that was asked for near the time limit is the limit's."""
    if verdict.code != PREEMPTED or ends is None:
        return verdict
    if not signals and verdict.cause == "preempted":
        return dataclasses.replace(verdict, cause="time limit (by the clock)")
    lead = float(os.environ.get(environment.SIGNAL_LEAD) or 0)
    if signals and signals[0] is signal.SIGUSR2 and time.time() > ends - lead - EARLY_SECONDS:
        return dataclasses.replace(verdict, cause=f"time limit ({signals[0].name})")
    return verdict


def settle(run: RunDir, record: Run) -> None:
    """Give attempts that could not say how they ended the cause that SLURM knows."""
    starts: dict[str, list[Accounted] | None] = {}
    for attempt in record.attempts:
        if attempt.job is None or not (attempt.end is None or attempt.cause == UNKNOWN):
            continue
        if attempt.job not in starts:
            starts[attempt.job] = scheduler.accounted(attempt.job)
        found = of_start(starts[attempt.job], attempt)
        if attempt.end is None:
            end = (found and found.end) or last_sign_of_life(run, attempt)
            close(run, attempt, Verdict(1, UNKNOWN), end)
        if found is not None and found.cause is not None:
            attempt.cause = found.cause if found.cause != "crash" else UNKNOWN


def of_start(starts: list[Accounted] | None, attempt: Attempt) -> Accounted | None:
    """The start of the job in which an attempt ran."""
    if not starts:
        return None
    if attempt.restart < len(starts):
        return starts[attempt.restart]
    return next(
        (e for e in reversed(starts) if e.start <= attempt.start and (e.end or attempt.start) >= attempt.start), None
    )


def suspects(record: Run, job: str) -> list[str]:
    """Hosts on which attempts of this job failed first, twice or more."""
    count = Counter(attempt.failed_on for attempt in record.attempts if attempt.job == job and attempt.failed_on)
    return sorted(host for host, times in count.items() if times >= MOST_FAILURES)
