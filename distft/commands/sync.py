"""`distft sync`: send metrics.jsonl to W&B as one run without gaps; safe to repeat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distft.errors import UserError
from distft.process.console import Console
from distft.recipe.load import load_resolved
from distft.run.folder import RunDir
from distft.run.records import MetricsRecord
from distft.run.wandb_tracker import Numbering, begin, rows_held


def sync(run: RunDir, offline: bool) -> str:
    """Send what W&B lacks. Returns what was done, in words.

    Args:
        offline: write a folder for `wandb sync` instead.

    Raises:
        UserError: there is nothing to send, or W&B does not take it.
    """
    name, recipe, rows = run.read().wandb_id, load_resolved(run.config), whole_history(run)
    if not rows:
        raise UserError(f"{run.path} has no metrics yet; train first")
    try:
        target, first = (name, 0) if offline else choose(name, len(rows), lambda one: rows_held(recipe, one))
        if first < len(rows):
            to = begin(recipe, run, target, online=not offline)
            send(to, rows, first)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"sending to W&B failed: {error}; {run.metrics} still has everything") from error
    if offline:
        folder = Path(to.dir).parent
        return f"{len(rows)} rows written; send them from a machine with internet: wandb sync {folder}"
    return f"{len(rows) - first} of {len(rows)} rows sent to the W&B run {target}"


def send(to: Any, rows: list[MetricsRecord], first: int) -> None:
    with Console(first=True).bar("rows", len(rows), first) as bar:
        for number, row in enumerate(rows[first:], start=first):
            to.log(row, step=number)
            bar.at(number + 1, "")
    to.finish()


def whole_history(run: RunDir) -> list[MetricsRecord]:
    """Every thing that was recorded once, in order; where attempts have repeated it, as it was recorded last."""
    numbering = Numbering(run)
    rows: dict[int, MetricsRecord] = {}
    for record in run.records():
        rows[numbering.of(record)] = record
    return [rows[number] for number in range(len(rows))]


def choose(name: str, rows: int, steps: Callable[[str], list[int]]) -> tuple[str, int]:
    """(W&B run to send to, first row to send).

    W&B takes rows in rising order only. So what is there is completed where it is the beginning of the whole; where
    it has gaps, the whole goes into a second run beside it.

    Args:
        steps: which rows a W&B run has.

    Raises:
        UserError: the second one has gaps too.
    """
    for candidate in (name, f"{name}-whole"):
        found = steps(candidate)
        if found == list(range(len(found))) and len(found) <= rows:
            return candidate, len(found)
    raise UserError(f"the W&B runs {name} and {name}-whole both have gaps; delete the second one and run this again")
