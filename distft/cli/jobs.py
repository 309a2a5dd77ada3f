"""Commands that start, submit, resume and cancel runs (lazy imports keep `--help` fast)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from distft.cli.app import (
    Allow,
    Anyway,
    KeepTrace,
    LauncherName,
    Nodes,
    Overrides,
    ProfileSteps,
    RanksPerNode,
    RestartsOption,
    RunFolder,
    TimeLimit,
    app,
)
from distft.errors import UserError
from distft.process import environment, streams
from distft.run.profile import wanted


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(help="recipe (YAML); not needed if the run folder has one")] = None,
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="run folder; default: runs/NAME")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="number of ranks; default: the number of GPUs, or 1")] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="how many times crashed or hung ranks are restarted automatically")
    ] = 0,
    allow: Allow = None,
    profile: ProfileSteps = None,
    trace: KeepTrace = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="only create the run folder")] = False,
) -> None:
    """Start or continue a run on this machine.

    The same command continues an interrupted run; a finished run is a no-op.
    """
    if environment.TOKEN in os.environ or environment.FORKSERVER_FD in os.environ:
        raise typer.Exit(process_of_a_node(run_dir))
    if "RANK" in os.environ:
        raise UserError(
            f"RANK is set ({os.environ['RANK']}), as torchrun or a script sets it for one of several processes, but "
            "distft train starts its ranks itself: run it once, with --nproc N, in place of torchrun or srun; if it is "
            "left over: `unset RANK LOCAL_RANK WORLD_SIZE`"
        )
    from distft.launcher import HERE, Job, Mode, Resources, find_launcher
    from distft.recipe.changes import check_allowed
    from distft.recipe.load import load
    from distft.run import home
    from distft.run.folder import RunDir

    recipe = load(Path(config), overrides or []) if config is not None else None
    if recipe is None and run_dir is None:
        raise UserError("give a recipe or a run folder: distft train CONFIG, or distft train --run-dir DIR")
    folder = run_dir or Path("runs") / str(recipe.name if recipe else "")
    home.settle(RunDir(folder))
    mode: Mode = "prepare" if prepare else "run"
    resources = Resources(nproc=nproc, max_restarts=max_restarts)
    job = Job(folder, recipe, resources, mode, check_allowed(allow or []), profile=wanted(profile, trace))
    streams.tolerate_closed_streams()  # the run does not end because its terminal does
    raise typer.Exit(find_launcher(HERE).launch(job))


def process_of_a_node(run_dir: Path | None) -> int:
    """What a launcher starts: a rank, or the process from which the ranks of a node are forked."""
    if run_dir is None:
        raise UserError(f"{environment.TOKEN} is set, so this process belongs to a run and needs --run-dir")
    from distft.training import forkserver

    if environment.FORKSERVER_FD in os.environ:
        return forkserver.serve(run_dir)
    return forkserver.work(run_dir)


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="recipe (YAML)")],
    overrides: Overrides = None,
    run_dir: Annotated[Path | None, typer.Option(help="run folder; default: runs/NAME")] = None,
    site: Annotated[str | None, typer.Option(help="site profile: a name or a file; default: $DISTFT_SITE")] = None,
    nodes: Nodes = None,
    nproc: RanksPerNode = None,
    time: TimeLimit = None,
    max_restarts: RestartsOption = None,
    after: Annotated[Path | None, typer.Option(help="run folder of a run that has to finish first")] = None,
    allow: Allow = None,
    launcher: LauncherName = None,
    anyway: Anyway = False,
    profile: ProfileSteps = None,
    trace: KeepTrace = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the batch script, send nothing")] = False,
    check: Annotated[bool, typer.Option("--check", help="send a short diagnostic job instead of the run")] = False,
) -> None:
    """Send a run to SLURM.

    It is requeued automatically after preemption, time limits and crashes.
    """
    from distft.launcher import CLUSTER, Job, Mode, Resources, find_launcher
    from distft.recipe.changes import check_allowed
    from distft.recipe.load import load
    from distft.run import home
    from distft.run.folder import RunDir

    recipe, name = load(config, overrides or []), launcher or CLUSTER
    resources = Resources(nodes, nproc, time, site, max_restarts, after)
    folder = run_dir or Path("runs") / str(recipe.name)
    mode: Mode = "show" if dry_run else "check" if check else "run"
    if mode == "run":
        home.settle(RunDir(folder))
    job = Job(folder, recipe, resources, mode, check_allowed(allow or []), name, anyway, wanted(profile, trace))
    raise typer.Exit(find_launcher(name).launch(job))


@app.command()
def resume(
    run_dir: RunFolder,
    site: Annotated[str | None, typer.Option(help="site profile; default: the one of the run's last job")] = None,
    nodes: Nodes = None,
    nproc: RanksPerNode = None,
    time: TimeLimit = None,
    max_restarts: RestartsOption = None,
    allow: Allow = None,
    launcher: Annotated[
        str | None, typer.Option("--launcher", metavar="NAME", help="launcher that sends it; default: the run's own")
    ] = None,
    anyway: Anyway = False,
    profile: ProfileSteps = None,
    trace: KeepTrace = False,
) -> None:
    """Send a run folder to SLURM again.

    For a run that was cancelled or held, or a folder that was copied here.
    """
    from distft.launcher import CLUSTER, HERE, Job, Resources, find_launcher
    from distft.recipe.changes import check_allowed
    from distft.run import home
    from distft.run.folder import RunDir

    run = RunDir(run_dir)
    last = run.read().launcher
    home.settle(run)
    name = launcher or (last if last != HERE else CLUSTER)
    resources = Resources(nodes, nproc, time, site, max_restarts)
    allowed, asked = check_allowed(allow or []), wanted(profile, trace)
    job = Job(run_dir, None, resources, allow=allowed, launcher=name, anyway=anyway, profile=asked)
    raise typer.Exit(find_launcher(name).launch(job))


@app.command()
def cancel(run_dir: RunFolder) -> None:
    """Stop a run, here or on SLURM. It can be resumed."""
    from distft.launcher import find_launcher
    from distft.run import home
    from distft.run.folder import RunDir

    run = RunDir(run_dir)
    home.settle(run)
    print(find_launcher(run.read().launcher).cancel(run))
