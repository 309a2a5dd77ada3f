"""The SLURM launcher's commands: check on the login node, then submit, resume or cancel."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import ValidationError

from distft.errors import DONE, UserError
from distft.launcher import Job, Outlook
from distft.recipe.load import load_resolved
from distft.recipe.messages import explain
from distft.recipe.schema import Recipe
from distft.run import lease
from distft.run.files import write_atomically
from distft.run.folder import RunDir
from launchers.local import finished, settle_recipe
from launchers.slurm import outlook, preflight, scheduler, script, site
from launchers.slurm.scheduler import Queued
from launchers.slurm.script import Request


@dataclass(frozen=True)
class Sent:
    """One job of a run: an entry of slurm/jobs.json."""

    job: str
    site: str
    nodes: int
    time: str
    submitted: float


def jobs_of(run: RunDir) -> list[Sent]:
    """Jobs that were sent for a run, oldest first."""
    try:
        return [Sent(**entry) for entry in json.loads((run.path / "slurm" / "jobs.json").read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(f"{run.path}/slurm/jobs.json is damaged ({error}); remove it") from None


class SlurmLauncher:
    """Sends a run to SLURM. The job continues by itself until the run is finished, held or cancelled."""

    def launch(self, job: Job) -> int:
        run = RunDir(job.run_dir)
        sent = jobs_of(run)
        profile_path = site.find(job.resources.site or (sent[-1].site if sent and job.recipe is None else None))
        profile = overridden(site.load(profile_path), job)
        if job.recipe is None and not run.exists():
            raise UserError(f"{run.path} holds no run; give a recipe: distft submit CONFIG --run-dir {run.path}")
        recipe = job.recipe or load_resolved(run.config)
        request = requested(run, recipe, profile, job)
        for warning in preflight.check(run, recipe, profile, request):
            print(f"warning: {warning}")
        if job.mode == "show":
            print(script.text(request), end="")
            return DONE
        scheduler.require("sbatch")
        if job.mode == "check":
            return preflight.send_probe(request)
        return self._submit(run, job, request, profile_path)

    def _submit(self, run: RunDir, job: Job, request: Request, profile_path: Path) -> int:
        if finished(run, job):
            settle_recipe(run, job.recipe, job.allow)
            print(f"{run.path} is finished; nothing to do")
            return DONE
        refuse_second_job(run)
        if run.exists() and job.recipe not in (None, load_resolved(run.config)) and lease.alive(run):
            raise UserError(f"{run.path} is in use by {lease.read_lease(run)}; stop it before you change its recipe")
        new = not run.path.exists()
        try:
            settle_recipe(run, job.recipe, job.allow)
            record = run.read()
            record.launcher, record.excluded = job.launcher, []  # who sends it again has looked at the nodes
            run.write(record)  # before the job may begin, whose run.json it is then
            number = script.send(request)
        except UserError:
            if new:
                shutil.rmtree(run.path, ignore_errors=True)
            raise
        entry = Sent(number, str(profile_path.absolute()), request.nodes, request.time, time.time())
        listed = json.dumps([asdict(item) for item in [*jobs_of(run), entry]], indent=1)
        write_atomically(run.path / "slurm" / "jobs.json", listed + "\n")
        print(f"job {number} submitted; watch it: distft status --watch {run.path}")
        return DONE

    def outlooks(self, runs: Sequence[RunDir]) -> list[Outlook | None]:
        return outlook.outlooks(runs, job_ids)

    def cancel(self, run: RunDir) -> str:
        scheduler.require("scancel")
        entries = answered(scheduler.queued(job_ids(run)))
        alive = [entry for entry in entries.values() if entry.state not in scheduler.ENDED]
        if not alive:
            raise UserError(f"{run.path} has no pending or running job; there is nothing to cancel")
        for entry in alive:
            if scheduler.ask("scancel", entry.job) is None:
                raise UserError(f"scancel {entry.job} failed; run it by hand")
        names = ", ".join(entry.job for entry in alive)
        return f"cancelled job {names}; distft resume {run.path} continues the run"


def job_ids(run: RunDir) -> list[str]:
    """All jobs of a run, oldest first: those that were sent from here, and those that a batch script began."""
    began = [attempt.job for attempt in run.read().attempts if attempt.job] if run.exists() else []
    ours = filter(str.isdigit, began)  # another launcher may have begun some
    return sorted({*ours, *(entry.job for entry in jobs_of(run))}, key=int)


def overridden(profile: site.Site, job: Job) -> site.Site:
    """The profile with the values of the command line, checked as those of the file are."""
    wanted = {"nodes": job.resources.nodes, "time": job.resources.time, "ranks": job.resources.nproc}
    wanted |= {"max_restarts": job.resources.max_restarts}
    given = {key: value for key, value in wanted.items() if value is not None}
    values = {**profile.model_dump(exclude_unset=True), **given}
    try:
        return site.Site.model_validate(values)
    except ValidationError as error:
        lines = [f"--{'.'.join(map(str, key))}: {what}" for key, what in explain(error, values, site.Site)]
        raise UserError("\n".join(lines)) from None


def requested(run: RunDir, recipe: Recipe, profile: site.Site, job: Job) -> Request:
    return Request(
        name=f"distft-{recipe.name}",
        run_dir=run.path,
        folder=run.path / "slurm",
        site=profile,
        nodes=profile.nodes,
        time=profile.time,
        allow=job.allow,
        launcher=job.launcher,
        dependency=after(profile.dependency, job.resources.after),
    )


def after(dependency: str | None, earlier: Path | None) -> str | None:
    """The dependency of a job that waits for another run to be finished."""
    if earlier is None:
        return dependency
    first = RunDir(earlier)
    if first.read().state == "done":
        return dependency
    jobs = job_ids(first)
    entry = answered(scheduler.queued(jobs)).get(jobs[-1]) if jobs else None
    if entry is None or entry.state in scheduler.ENDED:
        raise UserError(f"--after: {first.path} is not finished and has no pending or running job; resume it first")
    return ",".join(filter(None, [dependency, f"afterok:{entry.job}"]))


def refuse_second_job(run: RunDir) -> None:
    for entry in answered(scheduler.queued(job_ids(run))).values():
        if entry.state not in scheduler.ENDED:
            raise UserError(f"job {entry.job} of {run.path} is {entry.state.lower()} already; cancel it first, or wait")


def answered(entries: dict[str, Queued] | None) -> dict[str, Queued]:
    """Raises UserError where squeue did not answer: that is not the same as no job."""
    if entries is None:
        raise UserError("squeue does not answer, so the state of the run's jobs is unknown; try again later")
    return entries
