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
def data(
    config: Annotated[Path, typer.Argument(help="recipe (YAML)")],
    overrides: Overrides = None,
    records: Annotated[int, typer.Option(min=0, help="how many documents to show")] = 3,
    read: Annotated[int, typer.Option(min=1, help="how many records to read and count")] = 1000,
    held_out: Annotated[bool, typer.Option("--eval", help="the held-out data")] = False,
    task: Annotated[str | None, typer.Option(help="of several tasks, the one to look at")] = None,
    ids: Annotated[bool, typer.Option("--ids", help="show the token ids too")] = False,
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="write a page instead")] = None,
) -> None:
    """Show records as they will be trained.

    Texts with what is learned of them in colour, what was split, truncated or dropped, and how long documents are.
    """
    from rich.console import Console as Terminal

    from distft.process.console import Console
    from distft.recipe.load import load
    from distft.run.files import write_atomically

    recipe = load(config, overrides or [])
    from distft.inference.inputs import checked_part
    from distft.training import preview, preview_view

    part = checked_part(recipe, task)

    found = preview.look(recipe, part, "eval" if held_out else "train", records, read, Console(first=True))
    if page is None:
        preview_view.on_terminal(found, Terminal(highlight=False), ids)
    else:
        write_atomically(page, preview_view.page(found, ids))
        print(f"{page} shows {len(found.shown)} of {len(found.sizes):,} documents")
    if found.refused:
        raise UserError(f"{found.faulty:,} of {found.read:,} records cannot be used; the first: {found.faults[0]}")


@app.command()
def encode(
    config: Annotated[Path, typer.Argument(help="recipe (YAML)")],
    overrides: Overrides = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes that encode at a time; default: the cores it may use")
    ] = None,
) -> None:
    """Encode the data of a recipe ahead of its job.

    Needs no GPU. The job finds what is there; after a kill, the same command continues.
    """
    from distft.process.console import Console
    from distft.recipe.load import load

    recipe = load(config, overrides or [])
    from distft.training.preparation import prepare

    for prepared in prepare(recipe, workers, Console(first=True)):
        print(prepared, flush=True)
    print("a job with this recipe finds them there and encodes nothing")


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
