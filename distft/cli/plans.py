"""The command that plans: what a recipe takes before it runs (lazy imports)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from distft.cli.app import LauncherName, Overrides, app

WIDTH = 110  # of a table with all moments; narrower terminals wrap whole lines


@app.command()
def plan(
    path: Annotated[Path, typer.Argument(metavar="RECIPE|RUN", help="recipe (YAML), or a run folder")],
    overrides: Overrides = None,
    site: Annotated[
        str | None,
        typer.Option(help="site profile: a name or a file; default: this machine, for a run that of its job"),
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="number of nodes; default: the site's, or 1")] = None,
    nproc: Annotated[int | None, typer.Option(min=1, help="ranks per node; default: the site's, or 1")] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="NAME", help="GPU of each rank, as H100-80GB; default: the site's, or a CPU")
    ] = None,
    launcher: LauncherName = None,
    everything: Annotated[bool, typer.Option("--grid", help="list what fits, the fastest first")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, in bytes and seconds")] = False,
) -> None:
    """Say how much memory and time a recipe takes, without running it.

    Memory of one rank by term at the moments of a step, whether it fits, and the smallest changes that make it fit.
    Of a run: what was measured beside it.
    """
    from distft.commands import plan as planning
    from distft.commands import plan_length
    from distft.commands import plan_view as view
    from distft.commands.plan_compared import compared
    from distft.launcher import Resources
    from distft.plan import record

    resources = Resources(nodes, nproc, site=site)
    found = planning.plan(path, overrides or [], resources, gpu, launcher, everything)
    if as_json:
        measured = None if found.measured is None else asdict(found.measured)
        length = {"steps": found.length.steps, "steps_from": found.length.because, "seconds": found.length.seconds}
        figures = {**record.as_json(found.prediction), **length, "unknown": list(found.unknown), "measured": measured}
        figures["settled"] = found.settled
        print(json.dumps(figures, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False, width=max(Console().width, WIDTH))
    console.print(view.terms(found.prediction))
    console.print(view.host_terms(found.prediction))
    told = compared(found.measured, found.prediction) if found.measured else ()
    long = plan_length.sentence(found.length, found.prediction)
    settled = [found.settled] if found.settled else []
    for sentence in (*settled, *view.verdict(found.prediction), long, *found.unknown, *told):
        console.print(sentence, soft_wrap=True, markup=False)
    if found.ways is not None:
        console.print(view.ways_out(found.ways) if found.ways else "no change of up to three keys makes it fit")
    if everything:
        console.print(view.fitting(found.fitting))
