"""Attempts, as the leading node sees them: their entries in run.json, from start to end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from distft.errors import DONE, FAILED, PREEMPTED, no_space
from distft.process import stop_signals
from distft.recipe.schema import Recipe
from distft.run.folder import Attempt, Run, RunDir, State, only_export, this_host
from distft.run.lease import Held
from distft.run.room import keep_room

MOST_FRUITLESS_HERE = 1  # a second one in a row is for the scheduler, which may give other nodes
RESTART_ROOM_SECONDS = 60.0  # less of the job's time is not worth a restart

STATES: dict[int, State] = {DONE: "done", PREEMPTED: "preempted"}


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended, or the part of one node in it: the exit code, and the cause in words."""

    code: int
    cause: str
    weight: int = 0  # of several verdicts, the one with the smallest weight names the cause
    host: str | None = None  # where it may be the host's doing: a process killed, hung or crashed without a word


@dataclass(frozen=True)
class Phases:
    """What the leading node does in an attempt."""

    train: Callable[[Attempt], Verdict]
    export: Callable[[Attempt], Verdict]  # when no step is left and all ranks have ended


@dataclass(frozen=True)
class Restarts:
    """Whether to start the ranks again here, in the same allocation, after they crashed, hung or were lost."""

    most: int = 0  # from one start of the job to the next
    ends: float | None = None  # seconds since the epoch at which the allocation ends
    possible: Callable[[Attempt], bool] = lambda attempt: True  # whether all nodes are there and their ranks have ended

    def again(self, record: Run, verdict: Verdict, done: int) -> bool:
        return (
            verdict.code == FAILED
            and done < self.most
            and not stop_signals.requested()
            and fruitless(record) <= MOST_FRUITLESS_HERE
            and (self.ends is None or time.time() + RESTART_ROOM_SECONDS < self.ends)
            and self.possible(record.attempts[-1])
        )


def in_this_allocation(
    run: RunDir,
    recipe: Recipe,
    held: Held,
    hosts: list[str],
    world: int,
    restarts: Restarts,
    phases: Phases,
) -> Verdict:
    """One attempt, and the next as long as `restarts` allows it. Raises as `recorded` does."""
    done = 0
    while True:
        verdict = recorded(run, recipe, held, hosts, world, phases)
        if not restarts.again(run.read(), verdict, done):
            return verdict
        done += 1
        print(f"distft: {verdict.cause}: restarting the ranks here, restart {done} of {restarts.most}", flush=True)
        held.change_token()


def recorded(run: RunDir, recipe: Recipe, held: Held, hosts: list[str], world: int, phases: Phases) -> Verdict:
    """Train and export as the next attempt, with a beginning and an end in run.json.

    Raises:
        RunFailed: another attempt took the run over; run.json is theirs then and is left alone.
    """
    record = run.read()
    attempt = begin(run, record, recipe, held, hosts, world)
    verdict = Verdict(FAILED, "the parent process failed")
    try:
        found = phases.train(attempt) if not record.trained else Verdict(DONE, "trained")
        if found.code == DONE:
            held.check()
            record.trained = run.newest_commit()
            run.write(record)  # so that the next attempt, if this one is cut off, has only the export to do
            found = phases.export(attempt)
        verdict = found  # not before: ranks that are done make no run that is
    finally:
        try:
            held.check()
            close(run, attempt, verdict, end=time.time())
            record.state = state_after(record, verdict)
            run.write(record)
            if record.state == "trained":
                print(f"distft: {only_export(run.path)}", flush=True)
        except OSError as error:
            # No space even for this: what filled the disk was said already, and the next attempt closes this one.
            if not no_space(error) or verdict.code == DONE:
                raise
    return verdict


def state_after(record: Run, verdict: Verdict) -> State:
    """The state of a run after an attempt. One that is trained does not fail, whatever the export ran into."""
    return STATES.get(verdict.code, "trained" if record.trained else "failed")


def begin(run: RunDir, record: Run, recipe: Recipe, held: Held, hosts: list[str], world: int) -> Attempt:
    close_unfinished(run, record, "killed")
    if run.newest_commit() < record.trained:  # that checkpoint was removed or lost: its steps are trained again
        record.trained = 0
    keep_room(run.reserve)
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
    attempt.failed_on = verdict.host
    attempt.commit_after = run.newest_commit()


def last_sign_of_life(run: RunDir, attempt: Attempt) -> float:
    logs = [path.stat().st_mtime for path in run.attempt_logs(attempt.number).glob("*.log")]
    return max([attempt.start, *logs])


def fruitless(record: Run) -> int:
    """How many of the last attempts, without a break, ended by their own doing and committed nothing. Those before
    somebody sent the run again do not count: they have looked at it."""
    count = 0
    for attempt in reversed([attempt for attempt in record.attempts if same_start(attempt, record.attempts[-1])]):
        if attempt.commit_after > attempt.commit_before or attempt.exit_code == DONE:
            break
        if not is_from_outside(attempt):
            count += 1
    return count


def same_start(one: Attempt, other: Attempt) -> bool:
    """Whether two attempts are of one job, or here of one light parent."""
    return one.job == other.job and (one.job is not None or one.pid == other.pid)


def is_from_outside(attempt: Attempt) -> bool:
    """Preempted or cancelled: says nothing about the run. A time limit without a commit does."""
    return (attempt.cause or "").startswith(("preempted", "requeued", "cancelled"))
