"""The local launcher: runs an attempt on this machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
from collections.abc import Sequence
from functools import partial

from distft.errors import DONE, UserError
from distft.launcher import Job, Outlook, find_launcher
from distft.plan.place import Place
from distft.process import environment
from distft.process.devices import gpus
from distft.process.memory import memory_given
from distft.recipe import changes
from distft.recipe.earlier import begun, inherited
from distft.recipe.load import check_sizes, differences, dump, load_resolved
from distft.recipe.schema import Recipe
from distft.run import lease, tracking
from distft.run.batch import meant_alike, settled
from distft.run.files import write_atomically
from distft.run.folder import Attempt, RunDir, new_wandb_id, this_host
from distft.run.lease import Held
from launchers.attempt import Phases, Restarts, Verdict, in_this_allocation
from launchers.parent import Claim, Household, Node, export, household, run_ranks

PATIENCE_SECONDS = 1.0  # somebody who only looks holds a run for an instant


class LocalLauncher:
    """All ranks on this machine, under one light parent."""

    def launch(self, job: Job) -> int:
        refuse_what_needs_a_scheduler(job)
        nproc = job.resources.nproc or gpus() or 1
        run = RunDir(job.run_dir)
        if job.recipe is None and not run.exists():
            raise UserError(f"{run.path} holds no run; give a recipe: distft train CONFIG --run-dir {run.path}")
        if job.mode == "run":
            refuse_a_job_elsewhere(run, job)
        run.path.mkdir(parents=True, exist_ok=True)
        if job.mode == "prepare":  # in a batch script that is started again, whose last attempt may not be cold yet
            refuse_to_start_over_at_work(run, job.recipe)
            settle_recipe(run, job.recipe, job.allow)
            return DONE
        if run.exists():
            agreed_recipe(run, job.recipe, job.allow)  # before anything is written, the lease included
        os.environ[environment.ALLOW] = ",".join(sorted(job.allow))  # the ranks see data, tokenizer and libraries
        os.environ[environment.PROFILE] = job.profile.text() if job.profile is not None else ""
        with lease.hold_run(run, patience=PATIENCE_SECONDS) as held, household(run, nproc) as home:
            if not finished(run, job):  # before anything is written
                wanted = job.recipe or load_resolved(run.config)
                check_sizes(settled(run, wanted), nproc)
                tracking.check(wanted)
            recipe = settle_recipe(run, job.recipe, job.allow)
            record = run.read()
            if record.state == "done":
                print(f"{run.path} is finished; nothing to do")
                return DONE
            if record.launcher != job.launcher:
                record.launcher = job.launcher
                run.write(record)
            restarts = Restarts(job.resources.max_restarts or 0)

            def write_final(attempt: Attempt) -> Verdict:
                return export(run, recipe, Claim(attempt.number, held.lease.token, held.lock), held.renew, home)

            phases = Phases(partial(on_this_node, run, recipe, held, nproc, home), write_final)
            return in_this_allocation(run, recipe, held, [this_host()], nproc, restarts, phases).code

    def place(self, job: Job) -> Place:
        """Ranks on CPUs: without torch nobody can say which GPU this machine has."""
        return Place(job.resources.nodes or 1, job.resources.nproc or 1, memory=memory_given())

    def outlooks(self, runs: Sequence[RunDir]) -> list[Outlook | None]:
        return [None for _ in runs]

    def cancel(self, run: RunDir) -> str:
        """Have the light parent stop its ranks; they save first."""
        found = lease.read_lease(run)
        if found is None or found.released or not lease.alive(run):
            raise UserError(f"{run.path} is not running; there is nothing to cancel")
        if found.host != this_host():
            raise UserError(f"{run.path} is running on {found.host}; cancel it there")
        os.kill(found.pid, signal.SIGTERM)
        return f"asked process {found.pid} to save and stop; the same command continues the run"


def refuse_what_needs_a_scheduler(job: Job) -> None:
    """Raises UserError if the job asks for something that one machine without a scheduler cannot do."""
    asked = job.resources
    given = {"--nodes": asked.nodes, "--time": asked.time, "--site": asked.site, "--after": asked.after}
    flags = [flag for flag, value in given.items() if value is not None]
    flags += {"show": ["--dry-run"], "check": ["--check"]}.get(job.mode, [])
    if flags:
        raise UserError(
            f"{', '.join(flags)}: the launcher '{job.launcher}' runs on this machine and submits no job; leave it out, "
            "or name another launcher (--launcher)"
        )


def refuse_a_job_elsewhere(run: RunDir, job: Job) -> None:
    """Raises UserError if the launcher that has the run knows of a job that waits or runs: it would write too."""
    owner = run.read().launcher if run.exists() else job.launcher
    if owner == job.launcher:
        return
    try:
        [found] = find_launcher(owner).outlooks([run])
    except UserError as error:  # it is not installed here
        found = Outlook("", "unknown", str(error))
    if found is not None and found.state == "unknown":
        print(f"warning: whether a job of {run.path} waits or runs is not known: {found.detail}")
    elif found is not None and found.state != "gone":
        raise UserError(
            f"job {found.job} of {run.path} is {found.state} and would write to it; first: distft cancel {run.path}"
        )


def on_this_node(run: RunDir, recipe: Recipe, held: Held, nproc: int, home: Household, attempt: Attempt) -> Verdict:
    """All ranks of an attempt here. The parent opens the socket they meet on, so that no port is chosen twice."""
    listener = socket.create_server(("127.0.0.1", 0))
    node = Node(nproc=nproc, port=listener.getsockname()[1], listener=listener, timeout=recipe.engine.timeout)
    return run_ranks(run, node, Claim(attempt.number, held.lease.token, held.lock), held.renew, home)


def settle_recipe(run: RunDir, wanted: Recipe | None, allowed: frozenset[str] = frozenset()) -> Recipe:
    """The recipe of this attempt, written to the run folder; with it a finished run may not be finished any more.

    Raises what `agreed_recipe` does.
    """
    if not run.exists():
        assert wanted is not None
        assert wanted.name is not None
        recipe = begun(wanted)
        run.create(wanted.name, dump(recipe))
        return recipe
    agreed, stored = agreed_recipe(run, wanted, allowed), load_resolved(run.config)
    if agreed != stored:
        if has_nothing_to_lose(run):
            if replaced := effective(stored, agreed):
                start_over(run, agreed, replaced)
        elif reopened(run, agreed):
            record = run.read()
            record.state, record.trained = "new", 0
            run.write(record)
        write_atomically(run.config, dump(agreed))
    return agreed


def has_nothing_to_lose(run: RunDir) -> bool:
    """True if no checkpoint was committed, so that any recipe may take over."""
    record = run.read()  # checkpoints may have been removed by hand since
    committed = run.newest_commit() > 0 or any(attempt.commit_after > 0 for attempt in record.attempts)
    return not committed and record.state != "done"


def effective(old: Recipe, new: Recipe) -> list[str]:
    """Keys on which two recipes differ, without those that leave the losses alone."""
    return [item.key for item in differences(old, new) if item.rule != "harmless"]


def refuse_to_start_over_at_work(run: RunDir, wanted: Recipe | None) -> None:
    """For a batch script, which does not hold the run. Raises UserError if an attempt is at work whose recipe would be
    replaced; one of the same recipe may be this script's own last one."""
    if wanted is None or not run.exists() or not has_nothing_to_lose(run):
        return
    if effective(load_resolved(run.config), wanted) and lease.alive(run):
        holder = lease.read_lease(run) or "another process that is just starting"
        raise UserError(f"{run.path} is in use by {holder}; stop it before you change its recipe")


def start_over(run: RunDir, new: Recipe, changed: list[str]) -> None:
    """Remove what was made for the old recipe. What was recorded with it is kept with the logs of its last attempt."""
    print(f"{run.path} has no checkpoint yet, so it starts over with the new recipe; changed: {', '.join(changed)}")
    record = run.read()
    if record.attempts and run.metrics.exists():
        run.metrics.rename(run.attempt_logs(record.attempts[-1].number) / run.metrics.name)
    for folder in (run.base, run.path / "tensorboard"):
        shutil.rmtree(folder, ignore_errors=True)
    for made in (run.labels, run.batch, run.bad_records, run.reference, run.chart):
        made.unlink(missing_ok=True)
    run.write(dataclasses.replace(record, name=new.name or record.name, wandb_id=new_wandb_id(), trained=0))


def agreed_recipe(run: RunDir, wanted: Recipe | None, allowed: frozenset[str] = frozenset()) -> Recipe:
    """The recipe with which a run may go on.

    Raises:
        UserError: the folder holds a run of another recipe, with a checkpoint; the message shows the difference.
    """
    stored = load_resolved(run.config)
    if wanted is None or wanted == stored:
        return stored
    if has_nothing_to_lose(run):
        return begun(wanted, stored.data.today)
    found = differences(meant_alike(run, stored, wanted), wanted)
    changes.agree(found, allowed, f"{run.path} holds a run of another recipe")
    return inherited(stored, wanted)


def finished(run: RunDir, job: Job) -> bool:
    return run.exists() and run.read().state == "done" and not (job.recipe and reopened(run, job.recipe))


def reopened(run: RunDir, wanted: Recipe) -> bool:
    """Whether this recipe gives a finished run more to do."""
    found = differences(load_resolved(run.config), wanted)
    return any(item.key in ("train.steps", "train.epochs") for item in found)
