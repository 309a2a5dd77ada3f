"""The Typer app, and the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distft.errors import DONE
from distft.run.profile import MOST_STEPS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"distft {version('distft')}")
        raise typer.Exit(DONE)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Fine-tune large models on this machine and on SLURM, and never lose a run."""


Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="KEY", help="let KEY differ from earlier attempts; can be repeated"),
]
Nodes = Annotated[int | None, typer.Option(help="number of nodes; default: from the site profile")]
RanksPerNode = Annotated[int | None, typer.Option(help="ranks per node; default: one per GPU")]
TimeLimit = Annotated[str | None, typer.Option(help="time limit of a job; default: from the site profile")]
RestartsOption = Annotated[
    int | None, typer.Option(min=0, help="automatic restarts of the ranks within a job; default: from the site profile")
]
LauncherName = Annotated[
    str | None, typer.Option("--launcher", metavar="NAME", help="launcher that sends the run; default: slurm")
]
Anyway = Annotated[bool, typer.Option("--anyway", help="send it although the plan says that it cannot fit in memory")]
ProfileSteps = Annotated[
    int | None,
    typer.Option("--profile", metavar="N", min=1, max=MOST_STEPS, help="tell where the time and memory of N steps go"),
]
KeepTrace = Annotated[bool, typer.Option("--trace", help="with --profile: keep torch's trace in the attempt's logs")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value pairs that override values of the recipe")]
RunFolder = Annotated[Path, typer.Argument(help="run folder")]
