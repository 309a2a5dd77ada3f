"""What the requeue policy asks SLURM's controller until it answers: one that restarts must not end a job.

That ends with the allocation at the latest: SLURM then kills the batch script, and the policy in it.
"""

from __future__ import annotations

import shutil
import time

from launchers.slurm import scheduler
from launchers.slurm.scheduler import Shown

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
LONGEST_ANSWER_SECONDS = 60.0  # a controller that is busy answers late
SAID_EVERY_SECONDS = 60.0
MOST_REFUSALS = 2
REFUSED = "SLURM refuses to requeue the job"


def shown(job: str) -> Shown | None:
    """What the controller knows about a job, however long it takes; None where this machine has no scontrol."""
    began, said = time.monotonic(), 0
    pause, seconds = FIRST_PAUSE_SECONDS, scheduler.ANSWER_SECONDS
    while (found := scheduler.shown(job, seconds)) is None and shutil.which("scontrol") is not None:
        silent = time.monotonic() - began
        if silent >= said * SAID_EVERY_SECONDS:
            said += 1
            print(f"distft: SLURM's controller has not answered for {silent:.0f} s; it is asked again", flush=True)
        time.sleep(pause)
        pause, seconds = min(2 * pause, LONGEST_PAUSE_SECONDS), min(1.5 * seconds, LONGEST_ANSWER_SECONDS)
    return found


def requeue(job: str, restart: int, before: str | None) -> str | None:
    """Have SLURM start a job again that was in state `before`. Returns why it does not; None where it does.

    A request whose answer was lost may have been granted: then SLURM has raised the count of restarts. One that fails
    while the controller answers is refused; twice, because it may have come back only between the two questions. One
    that has no answer in time is not: a busy controller shows a job long before it changes one.
    """
    refusals, seconds = 0, scheduler.ANSWER_SECONDS
    while refusals < MOST_REFUSALS:
        if (agreed := scheduler.requeue(job, seconds)) is True:
            return None
        answer = scheduler.shown(job)
        if answer is None:
            refusals = 0
        elif agreed is False:
            refusals += 1
        seconds = min(1.5 * seconds, LONGEST_ANSWER_SECONDS)
        found = answer or shown(job)
        if found is None:
            break
        if found.state == "PENDING" or (found.restarts or 0) > restart:
            return None
        if found.state != before:
            ends = f"SLURM is ending the job ({found.state})"
            return ends if found.restarts is not None else None
    return REFUSED
