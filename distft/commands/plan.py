"""`distft plan`: memory and time of a recipe by arithmetic, what makes it fit, and a run beside its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distft.commands.plan_length import Length, length_of
from distft.commands.plan_run import Measured, measured, recorded
from distft.commands.status import total_steps
from distft.errors import UserError
from distft.launcher import CLUSTER, HERE, Job, Resources, find_launcher
from distft.plan.changes import Way, grid, ways
from distft.plan.choice import choose
from distft.plan.config import with_snapshot
from distft.plan.devices import device
from distft.plan.estimate import Estimator
from distft.plan.place import Place
from distft.plan.prediction import Prediction
from distft.recipe.load import check_sizes, load, load_resolved
from distft.recipe.schema import Recipe
from distft.run import batch, commits
from distft.run.batch import is_open
from distft.run.folder import Run, RunDir


@dataclass(frozen=True)
class Planned:
    """
    Attributes:
        length: of the run.
        unknown: sentences about what is not known of the place.
        ways: what makes it fit; None: it fits, or it was not asked for.
        fitting: all that fits, as a grid, if that was asked for.
        measured: of a run so far; None: there is no run, or nothing was recorded.
        settled: what `auto` stands for, in a sentence; None: the recipe leaves nothing open.
    """

    prediction: Prediction
    length: Length
    unknown: Sequence[str] = ()
    ways: Sequence[Way] | None = None
    fitting: Sequence[tuple[dict[str, object], Prediction]] = ()
    measured: Measured | None = None
    settled: str | None = None


def plan(
    path: Path,
    overrides: Sequence[str],
    resources: Resources,
    gpu: str | None = None,
    launcher: str | None = None,
    everything: bool = False,
) -> Planned:
    """Plan a recipe, or the recipe of a run as it was last started.

    Args:
        resources: nodes, ranks of a node, and the site that says what they are; default: of this machine.
        gpu: of each rank, in place of the site's.
        everything: the grid of all that fits, too.

    Raises:
        UserError: the recipe, the model, the site or the GPU is not what it should be.
    """
    if path.is_dir():
        if overrides:
            raise UserError(f"{path} is a run folder, whose recipe is what it is; leave out {overrides[0]}")
        return of_run(RunDir(path), resources, gpu, launcher)
    recipe = load(path, overrides)
    name = launcher or (CLUSTER if resources.site is not None else HERE)
    place = with_gpu(find_launcher(name).place(Job(path, recipe, resources, launcher=name)), gpu)
    check_sizes(recipe, place.nodes * place.per_node)
    recipe = recipe.model_copy(update={"model": with_snapshot(recipe.model, place.hub)})
    estimator = Estimator(place.per_node, place.device, place.memory)
    recipe, settled = without_auto(recipe, place, estimator)
    prediction = estimator.predict(recipe, place.nodes)
    out = None if prediction.fits else ways(recipe, place.nodes, estimator.predict)
    numbers = sorted({1, place.nodes, 2 * place.nodes})
    fitting = grid(recipe, numbers, estimator.predict) if everything else []
    return Planned(prediction, length_of(recipe, prediction), place.unknown, out, fitting, settled=settled)


def without_auto(recipe: Recipe, place: Place, estimator: Estimator) -> tuple[Recipe, str | None]:
    """The recipe as a run would settle it, and a sentence that says so; None: it leaves nothing open."""
    if not is_open(recipe):
        return recipe, None
    found = choose(recipe, place.nodes, place.per_node, estimator.predict)
    return found.applied(recipe), f"auto: {found.overrides(recipe)}, {found.why}"


def with_gpu(place: Place, gpu: str | None) -> Place:
    """Each rank with a GPU that was named, and the share of its peak that the site reaches. The memory of this machine
    is not that of its host."""
    if gpu is None:
        return place
    named, known = device(gpu), place.device
    if known is None:
        return replace(place, device=named, memory=None, unknown=())
    return replace(place, device=replace(named, reached=known.reached), unknown=())


def of_run(run: RunDir, resources: Resources, gpu: str | None, launcher: str | None) -> Planned:
    """The prediction that the attempt which was measured wrote down, unless another layout, site or GPU is asked
    about."""
    if not run.exists():
        raise UserError(f"{run.path} holds no run; give a recipe or a run folder")
    stored, recipe = run.read(), load_resolved(run.config)
    found = measured(run, recipe)
    last = found.attempt if found else len(stored.attempts)
    asked = resources != Resources() or gpu is not None or launcher is not None
    unknown: Sequence[str] = ()
    kept = batch.read_batch(run) if is_open(recipe) else None
    settled = None if kept is None else f"auto: {kept.overrides(recipe)}, as this run has settled it ({run.batch.name})"
    prediction = None if asked else recorded(run, last)
    if prediction is None:
        place = with_gpu(place_of(run, stored, resources, launcher), gpu)
        model = with_snapshot(commits.settled(run, recipe).model, place.hub)
        recipe = batch.settled(run, recipe.model_copy(update={"model": model}))
        check_sizes(recipe, place.nodes * place.per_node)
        estimator = Estimator(place.per_node, place.device, place.memory)
        recipe, chosen = without_auto(recipe, place, estimator)
        settled, prediction = settled or chosen, estimator.predict(recipe, place.nodes)
        unknown = place.unknown
    newest = next((one for one in run.newest_records() if "epoch" in one), {})
    seconds = found.seconds if found else None
    length = length_of(recipe, prediction, total_steps(recipe, newest), seconds)
    return Planned(prediction, length, unknown, measured=found, settled=settled)


def place_of(run: RunDir, stored: Run, resources: Resources, launcher: str | None) -> Place:
    """Where a run was last started, but for what is asked about now."""
    name = launcher or (CLUSTER if resources.site is not None else stored.launcher)
    try:
        place = find_launcher(name).place(Job(run.path, None, resources, launcher=name))
    except UserError as error:
        if resources.site is not None or launcher is not None:
            raise
        place = Place(resources.nodes or 1, resources.nproc or 1, unknown=[str(error)])
    if not stored.attempts or resources.nproc is not None:
        return place
    attempt = stored.attempts[-1]
    hosts = len(set(attempt.hosts)) or 1
    return replace(place, nodes=resources.nodes or hosts, per_node=max(1, attempt.world_size // hosts))
