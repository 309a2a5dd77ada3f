"""`distft plan`: memory and time of a recipe by arithmetic, what makes it fit, and a run beside its prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distft.commands.plan_length import Length, length_of
from distft.commands.plan_run import Measured, measured, recorded
from distft.commands.status import total_steps
from distft.errors import UserError
from distft.plan.changes import Way, grid, ways
from distft.plan.devices import Device, device
from distft.plan.estimate import Estimator
from distft.plan.prediction import Prediction
from distft.recipe.load import check_sizes, load, load_resolved
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir


@dataclass(frozen=True)
class Planned:
    """
    Attributes:
        ways: what makes it fit, if it does not.
        fitting: all that fits, as a grid, if that was asked for.
        length: of the run.
        measured: of a run so far; None: there is no run, or nothing was recorded.
    """

    prediction: Prediction
    ways: Sequence[Way]
    fitting: Sequence[tuple[dict[str, object], Prediction]]
    length: Length
    measured: Measured | None = None


def plan(
    path: Path, overrides: Sequence[str], nodes: int | None, nproc: int | None, gpu: str | None, everything: bool
) -> Planned:
    """Plan a recipe, or the recipe of a run as it was last started.

    Args:
        everything: the grid of all that fits, too.

    Raises:
        UserError: the recipe, the model or the GPU is not what it should be.
    """
    chosen = None if gpu is None else device(gpu)
    if path.is_dir():
        if overrides:
            raise UserError(f"{path} is a run folder, whose recipe is what it is; leave out {overrides[0]}")
        return of_run(RunDir(path), chosen, nodes, nproc)
    return of_recipe(load(path, overrides), chosen, nodes or 1, nproc or 1, everything)


def of_recipe(recipe: Recipe, chosen: Device | None, nodes: int, per_node: int, everything: bool) -> Planned:
    check_sizes(recipe, nodes * per_node)
    estimator = Estimator(per_node, chosen, host_memory())
    prediction = estimator.predict(recipe, nodes)
    out = [] if prediction.fits else ways(recipe, nodes, estimator.predict)
    found = grid(recipe, sorted({1, nodes, 2 * nodes}), estimator.predict) if everything else []
    return Planned(prediction, out, found, length_of(recipe, prediction))


def of_run(run: RunDir, chosen: Device | None, nodes: int | None, nproc: int | None) -> Planned:
    """The prediction that the attempt which was measured wrote down, unless another layout or GPU is asked about."""
    if not run.exists():
        raise UserError(f"{run.path} holds no run; give a recipe or a run folder")
    found, attempts = measured(run), run.read().attempts
    last = found.attempt if found else len(attempts)
    if (chosen, nodes, nproc) == (None, None, None) and (written := recorded(run, last)) is not None:
        return Planned(written, [], [], run_length(run, written, found), found)
    if attempts and nproc is None:
        hosts = len(set(attempts[-1].hosts)) or 1
        nodes, nproc = hosts, max(1, attempts[-1].world_size // hosts)
    prediction = Estimator(nproc or 1, chosen, host_memory()).predict(load_resolved(run.config), nodes or 1)
    return Planned(prediction, [], [], run_length(run, prediction, found), found)


def run_length(run: RunDir, prediction: Prediction, found: Measured | None) -> Length:
    recipe = load_resolved(run.config)
    last = next((one for one in run.newest_records() if "epoch" in one), {})
    return length_of(recipe, prediction, total_steps(recipe, last), found.step_seconds if found else None)


def host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
