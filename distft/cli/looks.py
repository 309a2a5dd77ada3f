"""Commands that inspect runs, verify resume and sync metrics (lazy imports)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from distft.cli.app import Overrides, RunFolder, app
from distft.errors import DONE, UserError


@app.command()
def status(
    run_dirs: Annotated[
        list[Path] | None, typer.Argument(help="run folders, or folders with runs in them; default: ./runs")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="refresh every few seconds until Ctrl-C")] = False,
    details: Annotated[bool, typer.Option("--details", help="show several runs as fully as one")] = False,
) -> None:
    """Show how runs are doing.

    One run that is named: state, step, loss, speed, ETA, what SLURM says, and how each attempt ended. Several: a line
    for each.
    """
    from distft.commands import status as report
    from distft.commands import status_view as view

    folders = run_dirs or []
    if watch:
        view.watch(folders, details)
        return
    statuses, broken = report.all_statuses(folders)
    for sentence in broken:
        print(f"distft: error: {sentence}", file=sys.stderr)
    if as_json:
        print(json.dumps(report.as_json(statuses), indent=2))
    elif statuses:
        view.show(statuses, folders, details)
    elif not broken:
        print("no runs in ./runs; give a run folder")


@app.command()
def logs(
    run_dir: RunFolder,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="keep printing until the run ends")] = False,
    rank: Annotated[int, typer.Option(min=0, help="number of the rank")] = 0,
    attempt: Annotated[int | None, typer.Option(min=1, help="number of the attempt; default: the newest")] = None,
) -> None:
    """Print the log of a rank."""
    from distft.commands import logs as rank_logs
    from distft.run.folder import RunDir

    try:
        rank_logs.print_log(RunDir(run_dir), attempt, rank, follow)
    except KeyboardInterrupt:
        raise typer.Exit(DONE) from None


@app.command()
def ranks(run_dir: RunFolder) -> None:
    """Show the ranks that AdaLoRA chose.

    A table of the rank of each weight here, a picture in the run folder.
    """
    from distft.commands import adalora_ranks as given_out
    from distft.run.folder import RunDir

    run = RunDir(run_dir)
    found = given_out.read_ranks(run)
    given_out.show_ranks(found)
    print(f"picture: {given_out.draw_ranks(run, found)}")


@app.command()
def profile(
    run_dir: RunFolder,
    attempt: Annotated[int | None, typer.Option(min=1, help="number of the attempt; default: the newest")] = None,
) -> None:
    """Show where the time of steps went.

    Time and memory of the steps that `train --profile N` has followed, in tables.
    """
    from distft.commands import profile as profiles
    from distft.run.folder import RunDir

    profiles.show(RunDir(run_dir), attempt)


@app.command(name="verify-resume")
def verify_resume(
    config: Annotated[Path, typer.Argument(help="recipe (YAML)")],
    overrides: Overrides = None,
    kills: Annotated[int, typer.Option(min=1, max=20, help="how many times the second run is killed")] = 2,
    steps: Annotated[int, typer.Option(min=2, max=1000, help="steps of each run")] = 24,
    nproc: Annotated[int | None, typer.Option(min=1, help="number of ranks; default: the number of GPUs, or 1")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=0.1, help="relative difference that counts as equal; default: not a bit")
    ] = 0.0,
) -> None:
    """Check that a recipe resumes bit for bit.

    Runs it for a few steps here, once undisturbed and once with kills, and compares everything. Without a tolerance
    both use `engine.deterministic`.
    """
    from distft.recipe.load import load

    if kills >= steps:
        raise UserError(f"--kills {kills} needs more than {steps} steps: no two kills come after the same step")
    recipe = load(config, overrides or [])
    from distft.commands import verify_resume

    ranks = ("--nproc", str(nproc)) if nproc is not None else ()
    trial = verify_resume.Trial(ranks, steps, kills, tolerance)
    raise typer.Exit(verify_resume.verify(config, overrides or [], recipe, trial))


@app.command()
def sync(
    run_dir: RunFolder,
    offline: Annotated[bool, typer.Option("--offline", help="write a folder for `wandb sync`, send nothing")] = False,
) -> None:
    """Send the local metrics to W&B.

    As one run without gaps, from a machine with internet; can be repeated.
    """
    from distft.commands import sync as syncing
    from distft.run.folder import RunDir

    print(syncing.sync(RunDir(run_dir), offline))
