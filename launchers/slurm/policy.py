"""The requeue policy: the batch script runs it after srun; nothing else requeues a job.

75 is requeued. A crash is requeued until three attempts in a row committed nothing; then the run is held. So is one
whose folder takes no record, for lack of space or three times in a row. Wrong input and a finished run are not
requeued. Where SLURM itself has ended the job (preempted without grace, node failure, cancelled), requeue is SLURM's
business and nothing is done here; but after a time limit SLURM starts nothing again. So every event starts the job
again exactly once.

The script runs it again where it was killed; where the script itself was, the first node's parent does it on its way
out (`in_place_of_the_script`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from distft.errors import DONE, FAILED, PREEMPTED, USAGE, UserError, in_words, no_space
from distft.process import environment, stop_signals, streams
from distft.run import lease
from distft.run.folder import Attempt, Run, RunDir
from distft.run.lease import Lease
from distft.run.room import shortage
from launchers.attempt import Verdict, close, fruitless, state_after
from launchers.slurm import patience, scheduler
from launchers.slurm.cause import UNKNOWN, of_start, suspects
from launchers.slurm.output import last_words
from launchers.slurm.scheduler import Shown
from launchers.slurm.verdicts import Verdicts, folder, read_verdict

MOST_FRUITLESS = 3
OURS = ("crash", "time limit")  # of what SLURM ends a job for, that after which it does not start it again
ACCOUNTING_SECONDS = 4.0  # KILL follows TERM after KillWait, 30 s by default
KILLED = 128  # a shell's exit code of a process that a signal killed, less the signal


@dataclass(frozen=True)
class Decision:
    action: Literal["requeue", "leave", "hold"]
    reason: str
    remedy: str = "fix the cause"


WRONG_INPUT = Decision("leave", "wrong input is not retried")


def main() -> int:
    """`python -m launchers.slurm.policy EXIT_CODE`, within a job. Returns the exit code of the batch script."""
    os.umask(0o077)
    streams.tolerate_closed_streams()
    code, job = int(sys.argv[1]), os.environ["SLURM_JOB_ID"]
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    run = RunDir(Path(os.environ[environment.RUN_DIR]))
    verdict = of_attempt(run, run.read(), job, restart, code)
    now = now_shown(job, verdict)
    # The answer may have taken hours, of a node that was cut off: run.json is read after it.
    if now is not None and now.state == "RUNNING" and (now.restarts or 0) > restart:
        say(f"SLURM has started job {job} again already, so it is not requeued")
        return code
    if (holder := somebody_else(run, job, restart)) is not None:
        say(f"{holder} is using {run.path}, so this job is not requeued")
        return code
    record, state = run.read(), now.state if now else None
    missing = restart - max((attempt.restart for attempt in record.attempts if attempt.job == job), default=-1)
    attempt = closed(run, record, job, restart, verdict)
    cause = by_accounting(job, attempt) if attempt is not None and state != "RUNNING" else None
    if attempt is not None and cause is not None:
        note_what_slurm_did(record, attempt, cause)
    if attempt is not None and state == "RUNNING":
        note_a_silent_node(run, attempt)
    error = keep(run, record)
    decision = decide(record, verdict, state, cause)
    if attempt is not None:  # else run.json may be somebody else's
        decision = if_recorded(run, decision, error, missing)
    apply(run, record, job, decision, lambda: patience.requeue(job, restart, state))
    return FAILED if decision.action == "hold" else verdict.code


def now_shown(job: str, verdict: Verdict) -> Shown | None:
    """What SLURM knows about the job; where it may have to be started again, asked for until there is an answer."""
    return scheduler.shown(job) if verdict.code in (DONE, USAGE) else patience.shown(job)


def somebody_else(run: RunDir, job: str, restart: int) -> Lease | None:
    """Who is at work in place of this start of the job: a later one, because this was given up, or another job."""
    holder = lease.read_lease(run)
    if holder is None or holder.released:
        return None
    if holder.job == job:
        return holder if holder.restart > restart else None
    over = holder.job is not None and scheduler.is_over(holder.job)
    return holder if not over and lease.alive(run) else None


def in_place_of_the_script(run: RunDir, job: str, restart: int, verdict: Verdict) -> None:
    """Decide about a job that SLURM ends because its batch script was killed; for the first node's parent.

    SLURM takes that for the job's own failure, does not requeue it, and has the parents stop with SIGTERM. It takes a
    requeue while the job is ending. Without accounting, or SLURM's commands, it cannot be told from a cancelled job,
    and nothing is done.
    """
    state = scheduler.state_of(job)
    if state == "RUNNING":
        return  # the script is there and will decide
    record = run.read()
    attempt = of_start_of_job(record, job, restart)
    if attempt is None or by_accounting(job, attempt) != "crash":
        return
    attempt.cause = f"the batch script was killed: {attempt.cause}"
    error = keep(run, record)
    decision = decide(record, replace(verdict, cause="the batch script was killed"), state, "crash")
    decision = if_recorded(run, decision, error, missing=0)
    apply(run, record, job, decision, lambda: None if scheduler.requeue(job) else patience.REFUSED)


def of_attempt(run: RunDir, record: Run, job: str, restart: int, code: int) -> Verdict:
    """What the nodes said; srun's exit code alone is the highest of its tasks' and may be of a bystander."""
    first = read_verdict(folder(run, job, restart) / "node-0.json")
    if first is not None:
        return first
    if of_start_of_job(record, job, restart) is None:
        if code - KILLED in stop_signals.SIGNALS:
            name = signal.Signals(code - KILLED).name
            return Verdict(PREEMPTED, f"stopped ({name}) before the first node's light parent listened", weight=-1)
        if code not in (DONE, USAGE, PREEMPTED) and (said := last_words()) is not None:
            return Verdict(FAILED, f"no attempt began (srun left with {code}); the end of the job's output: {said}")
    if code > KILLED:
        killed = Verdict(FAILED, f"srun or the first node's light parent was killed by signal {code - KILLED}")
        return of_killed_parent(run, record, job, restart) or killed
    return Verdict(code if code in (DONE, USAGE, PREEMPTED) else FAILED, UNKNOWN)


def of_killed_parent(run: RunDir, record: Run, job: str, restart: int) -> Verdict | None:
    """Why its ranks ended, where it had taken that down and was killed while it waited for the other nodes."""
    attempt = of_start_of_job(record, job, restart)
    if attempt is None or attempt.end is not None:
        return None
    verdicts = Verdicts(folder(run, job, restart), 0, len(attempt.hosts)).of(attempt.number)
    if (own := verdicts.of_leader()) is None:
        return None
    found = verdicts.blamed(verdicts.weighed(own, seconds=0.0), attempt.hosts, seconds=0.0)
    return found if found.code != DONE else None  # it was at the export


def closed(run: RunDir, record: Run, job: str, restart: int, verdict: Verdict) -> Attempt | None:
    """The attempt, with its end where its parent could not write it; None where the input was refused before one."""
    attempt = of_start_of_job(record, job, restart)
    if attempt is None:
        if verdict.code == USAGE:  # run.json may be somebody else's
            return None
        number, now, newest = len(record.attempts) + 1, time.time(), run.newest_commit()
        attempt = Attempt(number, [], os.getpid(), 0, 0, start=now, job=job, restart=restart, commit_before=newest)
        record.attempts.append(attempt)
    if attempt.end is None:
        close(run, attempt, verdict, end=time.time())
        record.state = state_after(record, verdict)
    return attempt


def note_what_slurm_did(record: Run, attempt: Attempt, cause: str) -> None:
    if cause in ("crash", "finished") or attempt.exit_code == DONE:
        return
    if not (attempt.cause or "").startswith(cause):
        attempt.cause = f"{cause}: {attempt.cause}"
    if cause == "cancelled":
        record.state = "cancelled"


def note_a_silent_node(run: RunDir, attempt: Attempt) -> None:
    """A node that cannot write to the run folder leaves no verdict, and srun stops the others: to them it looks like a
    preemption, which would be requeued without end. With this cause it counts as fruitless."""
    assert attempt.job is not None
    preempted = attempt.exit_code == PREEMPTED and attempt.commit_after <= attempt.commit_before
    silent = Verdicts(folder(run, attempt.job, attempt.restart), 0, len(attempt.hosts)).silent(attempt.hosts)
    if preempted and silent:
        attempt.cause = f"node lost: {silent[0]} left no verdict, {attempt.cause}"


def keep(run: RunDir, record: Run) -> OSError | None:
    """Write run.json. Returns what kept it from that: a file system out of order for a moment must not end the job."""
    try:
        run.write(record)
    except OSError as error:
        say(f"{run.json} could not be updated: {in_words(error) or error}")
        return error
    return None


def of_start_of_job(record: Run, job: str, restart: int) -> Attempt | None:
    """Its last attempt."""
    return next((a for a in reversed(record.attempts) if (a.job, a.restart) == (job, restart)), None)


def by_accounting(job: str, attempt: Attempt) -> str | None:
    """Why SLURM ended this start of the job. It is still at work when it is asked, and its accounting is behind."""
    deadline = time.monotonic() + ACCOUNTING_SECONDS
    while time.monotonic() < deadline:
        starts = scheduler.accounted(job)
        if starts is None:
            return None
        found = of_start(starts, attempt)
        if found is not None and found.cause is not None:
            return found.cause
        time.sleep(0.5)
    return None


def decide(record: Run, verdict: Verdict, state: str | None, cause: str | None = None) -> Decision:
    """What to do with the job, from the run's record, the attempt's verdict and the job's state in SLURM.

    Args:
        cause: for which SLURM is ending the job, where it is and says so.
    """
    if verdict.code == DONE:
        return Decision("leave", "finished")
    if verdict.code == USAGE:
        return WRONG_INPUT
    if state != "RUNNING" and cause not in OURS:
        return Decision("leave", f"SLURM has ended the job ({state or 'no answer'})")
    count = fruitless(record)
    if count >= MOST_FRUITLESS:
        return Decision("hold", f"{count} attempts in a row committed nothing; the last one: {verdict.cause}")
    return Decision("requeue", verdict.cause)


def if_recorded(run: RunDir, decision: Decision, error: OSError | None, missing: int) -> Decision:
    """The decision, but no requeue where the next start could not be recorded either: nothing would count it. A rank
    that met the full disk first may have called that wrong input.

    Args:
        error: what kept run.json from being written.
        missing: starts of the job, up to this one, of which run.json knew nothing before.
    """
    if decision.action != "requeue" and decision != WRONG_INPUT:
        return decision
    full = error if error is not None and no_space(error) else shortage(run.reserve)
    if full is not None:
        return Decision("hold", f"no space left for {run.path} ({full.strerror})", "free some")
    if decision.action == "requeue" and error is not None and missing >= MOST_FRUITLESS:
        why = in_words(error) or error
        return Decision("hold", f"nothing could be recorded of the last {missing} starts of the job: {why}")
    return decision


def apply(run: RunDir, record: Run, job: str, decision: Decision, requeue: Callable[[], str | None]) -> None:
    """Do it. `requeue` returns why SLURM does not start the job again; None where it does."""
    if decision.action == "hold":
        record.state, record.reason = "held", decision.reason
        keep(run, record)
        say(f"held: {decision.reason}; {decision.remedy}, then: distft resume {run.path}")
    elif decision.action == "requeue":
        avoid = to_avoid(record, job)
        if avoid != record.excluded:
            record.excluded = avoid
            keep(run, record)
        if (refusal := requeue()) is not None:
            say(f"{decision.reason}: {refusal}; continue with: distft resume {run.path}")
            return
        say(f"{decision.reason}: SLURM requeues the job")
        if avoid and not scheduler.exclude(job, avoid):
            say(f"SLURM refuses to exclude {','.join(avoid)}, where attempts failed twice")
    else:
        say(decision.reason)


def to_avoid(record: Run, job: str) -> list[str]:
    """Hosts that failed twice, as far as enough others are there."""
    hosts = suspects(record, job)
    if not hosts or "SLURM_JOB_RESERVATION" in os.environ:  # what a reservation has left is not known
        return []
    nodes = os.environ.get(environment.HOSTS, "").split(",")
    usable = scheduler.usable_nodes(job, os.environ.get("SLURM_JOB_PARTITION", ""), like=nodes)
    return hosts if len(usable - set(hosts)) >= int(os.environ.get("SLURM_JOB_NUM_NODES") or 1) else []


def say(message: str) -> None:
    print(f"distft: {message}", flush=True)


if __name__ == "__main__":
    try:
        code = main()
    except (UserError, OSError) as error:
        said = (in_words(error) or error) if isinstance(error, OSError) else error
        print(f"distft: error: {said}", file=sys.stderr, flush=True)
        code = USAGE if isinstance(error, UserError) else FAILED
    sys.exit(code)
