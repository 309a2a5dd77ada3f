"""The jobs of a run: what was sent is written down in slurm/jobs.json, and the queue knows each by its tag."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from distft.errors import UserError
from distft.run.files import write_atomically
from distft.run.folder import Run, RunDir
from distft.run.home import JOBS
from launchers.slurm import scheduler
from launchers.slurm.outlook import WAITING
from launchers.slurm.scheduler import Tagged
from launchers.slurm.tags import has_tag, is_ours, tag


@dataclass(frozen=True)
class Sent:
    """One job of a run: an entry of slurm/jobs.json."""

    job: str
    site: str
    nodes: int
    time: str
    submitted: float
    cluster: str | None = None  # SLURM's name of it
    given: dict[str, Any] = field(default_factory=dict)  # by keys of the profile: from the command line


def jobs_of(run: RunDir) -> list[Sent]:
    """Jobs that were sent for a run, oldest first."""
    try:
        return [Sent(**entry) for entry in json.loads((run.path / JOBS).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(f"{run.path / JOBS} is damaged ({error}); remove it") from None


def remember(run: RunDir, sent: Sent) -> None:
    listed = json.dumps([asdict(item) for item in [*jobs_of(run), sent]], indent=1)
    write_atomically(run.path / JOBS, listed + "\n")


def job_ids(run: RunDir) -> list[str]:
    """Numbers of all jobs of a run, oldest first: those sent from here, and those that a batch script began."""
    record = run.read() if run.exists() else None
    began = [attempt.job for attempt in record.attempts[record.inherited :] if attempt.job] if record else []
    ours = filter(str.isdigit, began)  # another launcher may have begun some
    return sorted({*ours, *(entry.job for entry in jobs_of(run))}, key=int)


def alive(run: RunDir) -> list[Tagged]:
    """Jobs of a run that wait or run, oldest first.

    Raises:
        UserError: squeue did not answer; that is not the same as no job.
    """
    if not run.exists():
        return []
    record = run.read()
    return [job for job in _queue() if is_ours(job.comment, run, record)]


def why_not(run: RunDir) -> str:
    """Why jobs that the folder names are not the run's, as the rest of a sentence; "" where it names none."""
    sent = jobs_of(run)
    here = scheduler.configuration().get("ClusterName")
    if sent and here and sent[-1].cluster not in (None, here):
        return f" on this cluster ({here}); its job {sent[-1].job} was sent to {sent[-1].cluster}"
    numbers = job_ids(run)
    others = [job.job for job in _queue() if job.job in numbers]
    if others:
        return f"; job {', '.join(others)} in the queue has not the run's tag in its comment, so it is another's"
    return ""


def mark(job: str, record: Run, run: RunDir) -> None:
    """Tag a job that was sent by other means: by a batch script that a person has written."""
    comment, own = scheduler.comment(job), tag(record.id, run.path)
    if record.id and comment is not None and not has_tag(comment):
        scheduler.set_comment(job, f"{comment} {own}".strip())


def _queue() -> list[Tagged]:
    """The user's jobs that are not over."""
    found = scheduler.tagged()
    if found is None:
        raise UserError("squeue does not answer, so the state of the run's jobs is unknown; try again later")
    there = [job for job in found if job.state not in scheduler.ENDED or job.state in WAITING]
    return sorted((job for job in there if job.job.isdigit()), key=lambda job: int(job.job))
