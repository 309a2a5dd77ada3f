"""One attempt on the node that leads it: its entry in run.json, from the start of its ranks to their end."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from distft.config import Recipe
from distft.errors import DONE, FAILED, PREEMPTED
from distft.lease import Held
from distft.rundir import Attempt, Run, RunDir, State, this_host

STATES: dict[int, State] = {DONE: "done", PREEMPTED: "preempted"}


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended, or the part of one node in it: the exit code, and the cause in words."""

    code: int
    cause: str
    weight: int = 0  # of several verdicts, the one with the smallest weight names the cause


def recorded(
    run: RunDir, recipe: Recipe, held: Held, hosts: list[str], world: int, work: Callable[[Attempt], Verdict]
) -> Verdict:
    """Do `work` as the next attempt, with a beginning and an end in run.json.

    Raises:
        RunFailed: another attempt took the run over; run.json is theirs then and is left alone.
    """
    record = run.read()
    attempt = begin(run, record, recipe, held, hosts, world)
    verdict = Verdict(FAILED, "the parent process failed")
    try:
        verdict = work(attempt)
    finally:
        try:
            held.check()
            close(run, attempt, verdict, end=time.time())
            record.state = STATES.get(verdict.code, "failed")
            run.write(record)
        except OSError as error:
            # No space even for this: what filled the disk was said already, and the next attempt closes this one.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or verdict.code == DONE:
                raise
    return verdict


def begin(run: RunDir, record: Run, recipe: Recipe, held: Held, hosts: list[str], world: int) -> Attempt:
    close_unfinished(run, record, "killed")
    attempt = Attempt(
        number=len(record.attempts) + 1,
        hosts=hosts or [this_host()],
        pid=os.getpid(),
        world_size=world,
        zero_stage=recipe.engine.zero_stage,
        start=time.time(),
        job=held.lease.job,
        restart=held.lease.restart,
        commit_before=run.newest_commit(),
    )
    record.attempts.append(attempt)
    record.state, record.reason = "running", None
    run.write(record)
    run.attempt_logs(attempt.number).mkdir(parents=True, exist_ok=True)
    return attempt


def close_unfinished(run: RunDir, record: Run, cause: str) -> None:
    """Attempts whose parent could not write any more."""
    for attempt in record.attempts:
        if attempt.end is None:
            close(run, attempt, Verdict(FAILED, cause), end=last_sign_of_life(run, attempt))


def close(run: RunDir, attempt: Attempt, verdict: Verdict, end: float) -> None:
    steps = [record["step"] for record in run.records() if record.get("attempt") == attempt.number and "loss" in record]
    attempt.first_step, attempt.last_step = (steps[0], steps[-1]) if steps else (None, None)
    attempt.exit_code, attempt.cause, attempt.end = verdict.code, verdict.cause, end
    attempt.commit_after = run.newest_commit()


def last_sign_of_life(run: RunDir, attempt: Attempt) -> float:
    logs = [path.stat().st_mtime for path in run.attempt_logs(attempt.number).glob("*.log")]
    return max([attempt.start, *logs])
