"""Runs an attempt on this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
from itertools import takewhile
from pathlib import Path

from distft import lease
from distft.config import Recipe
from distft.errors import DONE, UserError
from distft.job import Job, Outlook
from distft.lease import Held
from distft.recipe import check_sizes, differences, dump, load_resolved, refused
from distft.rundir import Attempt, RunDir, this_host, write_atomically
from launchers.attempt import Verdict, recorded
from launchers.parent import Claim, Node, run_ranks

PATIENCE_SECONDS = 1.0  # somebody who only looks holds a run for an instant

_GPU = re.compile(r"\s*(\d+\s*$|GPU-|MIG-)")


class LocalLauncher:
    """All ranks on this machine, under one light parent."""

    def launch(self, job: Job) -> int:
        nproc = job.resources.nproc or gpus() or 1
        run = RunDir(job.run_dir)
        if job.recipe is None and not run.exists():
            raise UserError(f"{run.path} holds no run; name a recipe: distft train CONFIG --run-dir {run.path}")
        run.path.mkdir(parents=True, exist_ok=True)
        if job.mode == "prepare":  # in a batch script that is started again, whose last attempt may not be cold yet
            settle_recipe(run, job.recipe)
            return DONE
        if run.exists():
            agreed_recipe(run, job.recipe)  # before anything is written, the lease included
        with lease.hold(run, patience=PATIENCE_SECONDS) as held:
            if run.exists() and run.read().state == "done":
                settle_recipe(run, job.recipe)
                print(f"{run.path} is finished; nothing to do")
                return DONE
            check_sizes(job.recipe or load_resolved(run.config), nproc)  # before anything is written
            recipe = settle_recipe(run, job.recipe)
            return recorded(
                run, recipe, held, [this_host()], nproc, lambda attempt: on_this_node(run, recipe, held, nproc, attempt)
            ).code

    def outlook(self, run: RunDir) -> Outlook | None:
        return None

    def cancel(self, run: RunDir) -> str:
        """Have the light parent stop its ranks; they save first."""
        found = lease.read(run)
        if found is None or found.released or not lease.alive(run):
            raise UserError(f"{run.path} is not at work; there is nothing to cancel")
        if found.host != this_host():
            raise UserError(f"{run.path} is at work on {found.host}; cancel it there")
        os.kill(found.pid, signal.SIGTERM)
        return f"told process {found.pid} to save and to stop; the same command continues the run"


def on_this_node(run: RunDir, recipe: Recipe, held: Held, nproc: int, attempt: Attempt) -> Verdict:
    """All ranks of an attempt here. The parent opens the socket they meet on, so that no port is chosen twice."""
    listener = socket.create_server(("127.0.0.1", 0))
    node = Node(nproc=nproc, port=listener.getsockname()[1], listener=listener, timeout=recipe.engine.timeout)
    return run_ranks(run, node, Claim(attempt.number, held.lease.token, held.lock), held.renew)


def settle_recipe(run: RunDir, wanted: Recipe | None) -> Recipe:
    """The recipe of this attempt, written to the run folder. Raises what `agreed_recipe` does."""
    if not run.exists():
        assert wanted is not None
        assert wanted.name is not None
        run.create(wanted.name, dump(wanted))
        return wanted
    agreed = agreed_recipe(run, wanted)
    if agreed != load_resolved(run.config):
        write_atomically(run.config, dump(agreed))
    return agreed


def agreed_recipe(run: RunDir, wanted: Recipe | None) -> Recipe:
    """The recipe with which a run may go on. Only keys that leave the result alone may differ from the stored one.

    Raises:
        UserError: the folder holds a run of another recipe; the message shows the difference.
    """
    stored = load_resolved(run.config)
    if wanted is None or wanted == stored:
        return stored
    changed = differences(stored, wanted)
    if bad := refused(changed):
        lines = "".join(f"\n  {item.key}: {item.old!r} there, {item.new!r} asked for" for item in bad)
        raise UserError(f"{run.path} holds a run of another recipe; use another --run-dir, or the same values:{lines}")
    return wanted


def gpus() -> int:
    """GPUs this process may use, counted without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA counts up to the first entry that is none: -1, or SLURM's NoDevFiles
        return len(list(takewhile(_GPU.match, visible.split(","))))
    return len([entry for entry in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", entry.name)])
