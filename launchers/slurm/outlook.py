"""What SLURM knows about runs: at most one squeue and one sacct for all of them, whatever their number."""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from distft.errors import UserError
from distft.launcher import JobState, Outlook
from distft.run.folder import Attempt, Run, RunDir
from launchers.slurm import scheduler
from launchers.slurm.cause import UNKNOWN, of_start
from launchers.slurm.scheduler import Accounted, Queued
from launchers.slurm.tags import has_tag, is_ours

STATES: dict[str, JobState] = {  # of jobs that have nodes; in any other they run
    "CONFIGURING": "starting",
    "SUSPENDED": "suspended",
    "STOPPED": "suspended",
    "COMPLETING": "ending",
    "STAGE_OUT": "ending",
}
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
HELD = re.compile(r"held|(?<!thres)hold|SPECIAL_EXIT", re.IGNORECASE)  # in a state or a reason


@dataclass(frozen=True)
class Asked:
    """A run that has a job, and its owner."""

    run: RunDir
    record: Run
    job: str  # the newest
    unexplained: list[Attempt]  # they could not say themselves how they ended
    owner: int


def outlooks(runs: Sequence[RunDir], job_ids: Callable[[RunDir], list[str]]) -> list[Outlook | None]:
    """What SLURM knows about each run; None where it has no job.

    Args:
        job_ids: the jobs of a run, oldest first.
    """
    looked = [look_up(run, job_ids) for run in runs]
    asked = [item for item in looked if isinstance(item, Asked)]
    entries = scheduler.queued([item.job for item in asked], owners={item.owner for item in asked})
    accounts: dict[str, list[Accounted]] | None = None
    if entries is not None:  # where squeue hangs, sacct most likely does too: one time-out is enough
        over = [item.job for item in asked if is_over(entries.get(item.job))]
        accounts = scheduler.accounts({*over, *(a.job for item in asked for a in item.unexplained if a.job)})
    return [of_run(item, entries, accounts) if isinstance(item, Asked) else item for item in looked]


def look_up(run: RunDir, job_ids: Callable[[RunDir], list[str]]) -> Asked | Outlook | None:
    """What there is to ask SLURM about a run. One that cannot be read says so, and the others are asked about."""
    try:
        jobs = job_ids(run)
        if not jobs:
            return None
        record = run.read()
        attempts = [a for a in record.attempts if a.job in jobs and (a.end is None or a.cause == UNKNOWN)]
        return Asked(run, record, jobs[-1], attempts, run.json.stat().st_uid)
    except (UserError, OSError) as error:
        return Outlook("", "unknown", str(error))


def of_run(
    asked: Asked, entries: Mapping[str, Queued] | None, accounts: Mapping[str, list[Accounted]] | None
) -> Outlook:
    """What the two commands say about one run."""
    job, causes = asked.job, dict(causes_of(asked.unexplained, accounts or {}))
    if entries is None:
        return Outlook(job, "unknown", "SLURM does not answer; what the job does is unknown", causes=causes)
    entry = entries.get(job)
    if entry is not None and has_tag(entry.comment) and not is_ours(entry.comment, asked.run, asked.record):
        entry = None  # another cluster's job of the same number, or that of the run of which this is a copy
    if entry is not None and not is_over(entry):
        state, detail = in_words(entry, asked.run)
        return Outlook(job, state, detail, causes=causes)
    starts = (accounts or {}).get(job)
    if entry is None and asked.owner != os.getuid() and (not starts or starts[-1].end is None):
        return Outlook(job, "unknown", f"SLURM does not show you this job of {name_of(asked.owner)}", causes=causes)
    last = entry.state if entry is not None else starts[-1].state if starts else None
    said = f"SLURM says: {last.lower()}" if last else "SLURM has no accounting, so how it ended is unknown"
    return Outlook(job, "gone", said, (last or "").startswith("CANCELLED"), causes)


def is_over(entry: Queued | None) -> bool:
    """Whether a job has left the queue. One that is being requeued has not."""
    return entry is None or (entry.state in scheduler.ENDED and entry.state not in WAITING)


def in_words(entry: Queued, run: RunDir) -> tuple[JobState, str]:
    """The state of a job in the queue, and what there is to know about it."""
    if entry.state not in WAITING:
        return STATES.get(entry.state, "running"), entry.nodes
    if entry.reason == "DependencyNeverSatisfied":
        detail = "the run that it waits for was cancelled or failed; cancel it and resume: "
        return "blocked", f"{detail}distft cancel {run.path}; distft resume {run.path}"
    reason = entry.reason if entry.state == "PENDING" else entry.state.lower()
    if HELD.search(reason):
        who = "an administrator can" if reason == "JobHeldAdmin" else "you can"
        return "held", f"held in SLURM ({reason}); {who} release it: scontrol release {entry.job}"
    when = "" if entry.start in ("N/A", "") else f", expected {clock_time(entry.start)}"
    return "pending", f"{reason}{when}"


def causes_of(attempts: Iterable[Attempt], accounts: Mapping[str, list[Accounted]]) -> Iterable[tuple[int, str]]:
    """Number and cause of each attempt about whose end accounting knows something."""
    for attempt in attempts:
        start = of_start(accounts.get(attempt.job or ""), attempt)
        if start is not None and start.cause not in (None, "crash"):
            yield attempt.number, str(start.cause)


def name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def clock_time(seconds: str) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(float(seconds))) if seconds.isdigit() else seconds
