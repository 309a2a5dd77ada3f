"""Runs an attempt on this machine."""

from __future__ import annotations

import os
import re
from itertools import takewhile
from pathlib import Path

from distft.config import Recipe
from distft.errors import DONE, UserError
from distft.job import Job
from distft.recipe import differences, dump, load_resolved, refused
from distft.rundir import RunDir, write_atomically
from launchers.parent import Node, run_attempt

_GPU = re.compile(r"\s*(\d+\s*$|GPU-|MIG-)")


class LocalLauncher:
    """All ranks on this machine, under one light parent."""

    def launch(self, job: Job) -> int:
        nproc = job.resources.nproc or gpus() or 1
        run = RunDir(job.run_dir)
        if job.recipe is None and not run.exists():
            raise UserError(f"{run.path} holds no run; name a recipe: distft train CONFIG --run-dir {run.path}")
        run.path.mkdir(parents=True, exist_ok=True)
        with run.lock() as lock:
            if run.exists() and run.read().state == "done":
                settle_recipe(run, job.recipe)
                print(f"{run.path} is finished; nothing to do")
                return DONE
            check_sizes(job.recipe or load_resolved(run.config), nproc)  # before anything is written
            recipe = settle_recipe(run, job.recipe)
            return run_attempt(run, recipe, Node(nproc=nproc), lock)


def settle_recipe(run: RunDir, wanted: Recipe | None) -> Recipe:
    """The recipe of this attempt, written to the run folder. Only keys that leave the result alone may differ.

    Raises:
        UserError: the folder holds a run of another recipe; the message shows the difference.
    """
    if not run.exists():
        assert wanted is not None
        assert wanted.name is not None
        run.create(wanted.name, dump(wanted))
        return wanted
    stored = load_resolved(run.config)
    if wanted is None or wanted == stored:
        return stored
    changed = differences(stored, wanted)
    if bad := refused(changed):
        lines = "".join(f"\n  {item.key}: {item.old!r} there, {item.new!r} asked for" for item in bad)
        raise UserError(f"{run.path} holds a run of another recipe; use another --run-dir, or the same values:{lines}")
    write_atomically(run.config, dump(wanted))
    return wanted


def check_sizes(recipe: Recipe, world: int) -> None:
    """Every rank must get the same number of micro-batches.

    Raises:
        UserError: the global batch does not divide; the message names the nearest that fit.
    """
    unit = recipe.train.micro_batch * world
    batch = recipe.train.global_batch
    if batch % unit:
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        near = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"train.global_batch {batch} is not a multiple of micro_batch {recipe.train.micro_batch} x {world} ranks; "
            f"nearest that fit: train.global_batch={near}"
        )


def gpus() -> int:
    """GPUs this process may use, counted without loading CUDA."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA counts up to the first entry that is none: -1, or SLURM's NoDevFiles
        return len(list(takewhile(_GPU.match, visible.split(","))))
    return len([entry for entry in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", entry.name)])
