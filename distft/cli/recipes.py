"""Commands about recipes alone (lazy imports)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from distft.cli.app import Overrides, app
from distft.errors import UserError


@app.command()
def config(
    config: Annotated[Path | None, typer.Argument(help="recipe (YAML)")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON schema of recipes, for editors")] = False,
) -> None:
    """Print a recipe with every key."""
    from distft.recipe.load import dump, json_schema, load

    if schema:
        print(json.dumps(json_schema(), indent=2))
    elif config is None:
        raise UserError("give a recipe, or --schema")
    else:
        print(dump(load(config, overrides or [])), end="")


@app.command()
def new(
    task: Annotated[str, typer.Argument(help="a task.type; or `site`, `sbatch`: files that describe a cluster")],
    data: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="training data; for parallel files COLUMN=FILE, repeated")
    ] = None,
    held_out: Annotated[list[str] | None, typer.Option("--eval", metavar="FILE", help="held-out data")] = None,
    out: Annotated[Path | None, typer.Option(help="file to create; default: TASK.yaml in the current folder")] = None,
) -> None:
    """Write a recipe to start from.

    With the columns of your data filled in.
    """
    from distft.commands import new as starter

    written = starter.write(task, data or [], held_out or [], out)
    print("\n".join(written.lines()))
