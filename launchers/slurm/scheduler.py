"""Queries to SLURM by its own commands, with a time limit of a few seconds each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from distft.errors import UserError

ANSWER_SECONDS = 10.0
ENDED = {
    "COMPLETED": "finished",
    "PREEMPTED": "preempted",
    "TIMEOUT": "time limit",
    "NODE_FAIL": "node failure",
    "OUT_OF_MEMORY": "out of memory",
    "CANCELLED": "cancelled",
    "FAILED": "crash",
    "BOOT_FAIL": "node failure",
    "DEADLINE": "deadline",
    "REVOKED": "revoked",
    "REQUEUED": "requeued",
}


@dataclass(frozen=True)
class Queued:
    """A job that SLURM has not forgotten: a line of squeue."""

    job: str
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str
    start: str  # when it began or is expected to; N/A
    nodes: str
    comment: str = ""  # what whoever sent it wrote to it


@dataclass(frozen=True)
class Shown:
    """What the controller knows about a job now."""

    state: str  # RUNNING, COMPLETING, ...; FORGOTTEN: it answers that it knows no such job
    restarts: int | None  # how often it was started again; raised as soon as it is requeued


@dataclass(frozen=True)
class Tagged:
    """A job in the queue, and what whoever sent it wrote to it."""

    job: str
    state: str
    comment: str


@dataclass(frozen=True)
class Accounted:
    """One start of a job: a line of sacct."""

    state: str  # COMPLETED, PREEMPTED, TIMEOUT, ...
    start: float
    end: float | None
    nodes: str

    @property
    def cause(self) -> str | None:
        """In the words of run.json; None while it goes on."""
        return ENDED.get(self.state.split(" ")[0])


def ask(*command: str, seconds: float | None = None) -> str | None:
    """What a command of SLURM prints; None where it is missing, refuses or does not answer in time."""
    try:
        done = _run(command, seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _run(command: Sequence[str], seconds: float | None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}
    return subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # a comment or a folder in another encoding
        timeout=seconds or ANSWER_SECONDS,
        env=environment,
        check=False,
    )


def require(command: str) -> None:
    """Raises UserError where this machine has no such command."""
    if shutil.which(command) is None:
        raise UserError(f"{command} was not found; run this on a login node of your cluster")


def queued(jobs: list[str], owners: Collection[int] = ()) -> dict[str, Queued] | None:
    """Those of `jobs` that wait, run or have just ended; None where squeue does not answer.

    Args:
        owners: users other than this one who may have sent some of them.
    """
    if not jobs:
        return {}
    # All of the users', because squeue refuses a list with a job that it has forgotten.
    users = ",".join(map(str, sorted({os.getuid(), *owners})))
    output = ask("squeue", "--noheader", f"--user={users}", "--states=all", "--format=%i|%T|%r|%S|%N|%k")
    if output is None:
        return None
    entries = [Queued(*line.strip().split("|", 5)) for line in output.splitlines() if line.count("|") >= 4]
    return {entry.job: entry for entry in entries if entry.job in jobs}


def shown(job: str, seconds: float | None = None) -> Shown | None:
    """What the controller shows of a job; None where it does not answer."""
    try:
        done = _run(("scontrol", "--oneliner", "show", "job", job), seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" in done.stderr:
        return Shown("FORGOTTEN", None)
    output = done.stdout if done.returncode == 0 else ""
    state, restarts = re.search(r"\bJobState=(\w+)", output), re.search(r"\bRestarts=(\d+)", output)
    return Shown(state.group(1), int(restarts.group(1)) if restarts else None) if state else None


def tagged() -> list[Tagged] | None:
    """The user's jobs that wait, run or have just ended; None where squeue does not answer."""
    output = ask("squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%k")
    if output is None:
        return None
    return [Tagged(*line.split("|", 2)) for line in output.splitlines() if line.count("|") >= 2]


def comment(job: str) -> str | None:
    """What was written to a job; None where squeue does not answer."""
    output = ask("squeue", "--noheader", f"--jobs={job}", "--format=%k")
    return None if output is None else output.strip().removeprefix("(null)")


def set_comment(job: str, text: str) -> bool:
    """Returns whether SLURM agreed."""
    return ask("scontrol", "update", f"JobId={job}", f"Comment={text}") is not None


def configuration() -> dict[str, str]:
    """SLURM's settings by their names; empty where it does not answer."""
    output = ask("scontrol", "show", "config") or ""
    return dict(re.findall(r"^(\w+)\s*= (.*)$", output, re.MULTILINE))


def partitions() -> list[dict[str, str]]:
    """The settings of each partition; empty where SLURM does not answer."""
    output = ask("scontrol", "--oneliner", "show", "partition") or ""
    return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in output.splitlines()]


def state_of(job: str) -> str | None:
    """The job's state now, by the controller: RUNNING, COMPLETING, ..."""
    found = shown(job)
    return found.state if found else None


def is_over(job: str) -> bool:
    """Whether the controller says that a job has ended for good."""
    return state_of(job) in ENDED


def accounted(job: str) -> list[Accounted] | None:
    """All starts of a job, oldest first; None where there is no accounting."""
    found = accounts([job])
    return found[job] if found is not None else None


def accounts(jobs: Collection[str]) -> dict[str, list[Accounted]] | None:
    """All starts of each of `jobs`, oldest first; None where there is no accounting."""
    found: dict[str, list[Accounted]] = {job: [] for job in jobs}
    if not found:
        return found
    columns, listed = "JobID,State,Start,End,NodeList", ",".join(found)
    output = ask("sacct", "-X", "--duplicates", "--noheader", "--parsable2", f"--format={columns}", "--jobs", listed)
    if output is None:
        return None
    for line in output.splitlines():
        parts = line.split("|")
        if len(parts) == 5 and parts[0] in found and (start := _seconds(parts[2])) is not None:
            found[parts[0]].append(Accounted(parts[1], start, _seconds(parts[3]), parts[4]))
    return {job: sorted(starts, key=lambda entry: entry.start) for job, starts in found.items()}


def requeue(job: str, seconds: float | None = None) -> bool | None:
    """Have SLURM start a job again. Returns whether it agreed; None where it did not say so in time."""
    try:
        return _run(("scontrol", "requeue", job), seconds).returncode == 0
    except subprocess.TimeoutExpired:
        return None
    except OSError:
        return False


def exclude(job: str, hosts: list[str]) -> bool:
    """Have a job that was just requeued start on other nodes than these and those it excludes already."""
    listed = ",".join([*filter(None, [_excluded(job)]), *hosts])
    return ask("scontrol", "update", f"JobId={job}", f"ExcNodeList={listed}") is not None


def _excluded(job: str) -> str | None:
    """Nodes that a job does not want, as SLURM lists them."""
    output = ask("scontrol", "--oneliner", "show", "job", job)
    found = re.search(r"\bExcNodeList=(\S+)", output or "")
    return found.group(1) if found and found.group(1) != "(null)" else None


def usable_nodes(job: str, partition: str, like: list[str]) -> set[str]:
    """Nodes of a partition that are not down or drained, that the job does not exclude, and that have the features
    and the generic resources of one of those nodes `like` which it has; empty where SLURM does not answer."""
    output = ask("sinfo", "--noheader", "--Node", f"--partition={partition}", "--format=%N|%T|%f|%G") or ""
    nodes = [line.split("|") for line in output.splitlines() if line.count("|") == 3]
    kinds = {(features, resources) for name, _, features, resources in nodes if name in like}
    unwanted: set[str] = set()
    if (listed := _excluded(job)) is not None:
        unwanted = set((ask("scontrol", "show", "hostnames", listed) or "").split())
    return {
        name
        for name, state, *kind in nodes
        if tuple(kind) in kinds and name not in unwanted and not re.search(r"down|drain|fail|maint|\*", state)
    }


def _seconds(text: str) -> float | None:
    if text.isdigit():
        return float(text)
    try:
        return time.mktime(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").timetuple())
    except ValueError:
        return None
