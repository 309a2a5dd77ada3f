"""The SLURM launcher's commands: check on the login node, then submit, resume or cancel."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distft.errors import DONE, UserError
from distft.launcher import Job, Outlook
from distft.plan.place import Place
from distft.process import stop_signals
from distft.recipe.load import load_resolved
from distft.recipe.messages import explain
from distft.recipe.schema import Recipe
from distft.run import lease
from distft.run.batch import settled
from distft.run.folder import RunDir, new_id
from distft.run.turn import in_turn
from launchers.local import finished, settle_recipe
from launchers.slurm import outlook, preflight, scheduler, script, site
from launchers.slurm.jobs import Sent, alive, job_ids, jobs_of, remember, why_not
from launchers.slurm.place import place_of
from launchers.slurm.script import Request
from launchers.slurm.tags import tag

OPTIONS = {"nodes": "--nodes", "time": "--time", "ranks": "--nproc", "max_restarts": "--max-restarts"}


class SlurmLauncher:
    """Sends a run to SLURM. The job continues by itself until the run is finished, held or cancelled."""

    def launch(self, job: Job) -> int:
        run = RunDir(job.run_dir)
        if job.recipe is None and not run.exists():
            raise UserError(f"{run.path} holds no run; give a recipe: distft submit CONFIG --run-dir {run.path}")
        profile_path, given, kept = chosen(run, job)
        if kept:
            print(f"as at the last submission: {' '.join(f'{OPTIONS[key]} {value}' for key, value in kept.items())}")
        values = kept | given
        profile = overridden(site.load(profile_path), values)
        recipe = job.recipe or load_resolved(run.config)
        request = requested(run, recipe, profile, job)
        settings = scheduler.configuration() if job.mode == "run" else {}
        warnings = preflight.check(run, recipe, profile, request) + preflight.preemption(run, profile, settings)
        if job.recipe is not None or {"nodes", "ranks"} & given.keys() or job.resources.site is not None:
            warnings += preflight.planned(settled(run, recipe), profile, refuses=job.mode == "run" and not job.anyway)
        for warning in warnings:
            print(f"warning: {warning}")
        if job.mode == "show":
            identity = run.read().id if run.exists() else None
            print(script.text(tagged(request, identity or "ID")), end="")
            return DONE
        scheduler.require("sbatch")
        if job.mode == "check":
            return preflight.send_probe(request, recipe)
        cluster = settings.get("ClusterName")
        entry = Sent("", str(profile_path.absolute()), request.nodes, request.time, 0.0, cluster, values)
        with in_turn(run) as made:
            try:
                return self._submit(run, job, request, entry)
            except BaseException:
                if made and has_no_job(run):
                    shutil.rmtree(run.path, ignore_errors=True)
                raise

    def _submit(self, run: RunDir, job: Job, request: Request, entry: Sent) -> int:
        """Send the job, unless there is one. Nobody else does so at the same time."""
        if finished(run, job):
            settle_recipe(run, job.recipe, job.allow)
            print(f"{run.path} is finished; nothing to do")
            return DONE
        refuse_second_job(run)
        if run.exists() and job.recipe not in (None, load_resolved(run.config)) and lease.alive(run):
            raise UserError(f"{run.path} is in use by {lease.read_lease(run)}; stop it before you change its recipe")
        settle_recipe(run, job.recipe, job.allow)
        record = run.read()
        record.id = record.id or new_id()
        record.launcher, record.excluded = job.launcher, []  # who sends it again has looked at the nodes
        run.write(record)  # before the job may begin, whose run.json it is then
        with stop_signals.put_off():  # a job that nobody knows of would be the worst
            number = script.send(tagged(request, record.id))
            remember(run, dataclasses.replace(entry, job=number, submitted=time.time()))
            print(f"job {number} submitted; watch it: distft status --watch {run.path}", flush=True)
        return DONE

    def place(self, job: Job) -> Place:
        path, given, kept = chosen(RunDir(job.run_dir), job)
        return place_of(overridden(site.load(path), kept | given))

    def outlooks(self, runs: Sequence[RunDir]) -> list[Outlook | None]:
        return outlook.outlooks(runs, job_ids)

    def cancel(self, run: RunDir) -> str:
        scheduler.require("scancel")
        jobs = alive(run)
        if not jobs:
            raise UserError(f"{run.path} has no pending or running job{why_not(run)}; there is nothing to cancel")
        for job in jobs:
            if scheduler.ask("scancel", job.job) is None:
                raise UserError(f"scancel {job.job} failed; run it by hand")
        names = ", ".join(job.job for job in jobs)
        return f"cancelled job {names}; distft resume {run.path} continues the run"


def chosen(run: RunDir, job: Job) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The file of the profile; what the command line has in place of the profile's values; and what it had at the last
    submission of a run that is sent again, unless it says otherwise now."""
    asked, sent = job.resources, jobs_of(run) if job.recipe is None else []
    path = site.find(asked.site or (sent[-1].site if sent else None))
    values = {"nodes": asked.nodes, "time": asked.time, "ranks": asked.nproc, "max_restarts": asked.max_restarts}
    given = {key: value for key, value in values.items() if value is not None}
    before = sent[-1].given if sent and sent[-1].site == str(path.absolute()) else {}
    return path, given, {key: value for key, value in before.items() if key in OPTIONS and key not in given}


def overridden(profile: site.Site, values: dict[str, Any]) -> site.Site:
    """The profile with the values of the command line, checked as those of the file are."""
    everything = {**profile.model_dump(exclude_unset=True), **values}
    try:
        return site.Site.model_validate(everything)
    except ValidationError as error:
        all_of_them = ", ".join(OPTIONS[key] for key in values)  # what was wrong between several keys is theirs
        found = explain(error, everything, site.Site)
        lines = [f"{OPTIONS.get('.'.join(map(str, key)), all_of_them)}: {what}" for key, what in found]
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
        profile=job.profile,
        launcher=job.launcher,
        dependency=after(profile.dependency, job.resources.after),
    )


def tagged(request: Request, identity: str) -> Request:
    return dataclasses.replace(request, tag=tag(identity, request.run_dir))


def after(dependency: str | None, earlier: Path | None) -> str | None:
    """The dependency of a job that waits for another run to be finished."""
    if earlier is None:
        return dependency
    first = RunDir(earlier)
    if first.read().state == "done":
        return dependency
    jobs = alive(first)
    if not jobs:
        raise UserError(
            f"--after: {first.path} is not finished and has no pending or running job{why_not(first)}; resume it first"
        )
    return ",".join(filter(None, [dependency, f"afterok:{jobs[-1].job}"]))


def refuse_second_job(run: RunDir) -> None:
    for job in alive(run):
        raise UserError(f"job {job.job} of {run.path} is {job.state.lower()} already; cancel it first, or wait")


def has_no_job(run: RunDir) -> bool:
    """Whether SLURM says that nothing was sent for a run: sbatch may fail and the job be there all the same."""
    try:
        return not jobs_of(run) and not alive(run)
    except UserError:
        return False
