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
