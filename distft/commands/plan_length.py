"""How long a run is: steps, by `train` and the number of rows, hours, and the seconds of a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

from distft.plan.prediction import Prediction, text_of
from distft.recipe.schema import Recipe

DISK = 1e9  # bytes per second at which all ranks together write, assumed


@dataclass(frozen=True)
class Length:
    """
    Attributes:
        steps: of the optimizer; None: the data have to be encoded first.
        because: what the number of steps is known from.
        step_seconds: of one; None: it is not known.
        measured: `step_seconds` were measured, else reckoned.
        every: steps between checkpoints.
    """

    steps: int | None
    because: str
    step_seconds: float | None
    measured: bool
    every: int

    @property
    def seconds(self) -> float | None:
        """Of all steps, without evaluations."""
        return None if self.steps is None or self.step_seconds is None else self.steps * self.step_seconds


def length_of(recipe: Recipe, found: Prediction, steps: int | None = None, step_seconds: float | None = None) -> Length:
    """
    Args:
        steps: of a run that knows them, which has recorded an epoch.
        step_seconds: as they were measured.
    """
    because = "as the run has recorded"
    if recipe.train.steps is not None:
        steps, because = recipe.train.steps, "train.steps"
    elif steps is None:
        steps, because = _by_epochs(recipe)
    measured = step_seconds is not None
    return Length(steps, because, step_seconds if measured else found.step_seconds, measured, recipe.checkpoint.every)


def _by_epochs(recipe: Recipe) -> tuple[int | None, str]:
    from distft.data import row_counts  # it loads numpy

    assert recipe.train.epochs is not None
    rows, because = row_counts.noted(recipe), "{:,} rows, as a run has encoded the data"
    if rows is None:
        rows, because = (
            row_counts.guessed(recipe),
            "{:,} rows, guessed from the size of the data, which are not encoded",
        )
    if rows is None:
        return None, ""
    total = max(1, round(recipe.train.epochs * rows))
    return math.ceil(total / recipe.train.global_batch), because.format(rows)


def sentence(length: Length, found: Prediction) -> str:
    disk = found.checkpoint / DISK
    checkpoint = (
        f"a checkpoint of {text_of(found.checkpoint)} each {length.every} steps, written in {disk:.2g} s at an assumed "
        f"{DISK / 1e9:g} GB/s"
    )
    if length.steps is None:
        return (
            "train.epochs: how many steps they are is not known, as no run has encoded these data here and their size "
            f"does not tell; give train.steps to know; {checkpoint}"
        )
    text = f"about {length.steps:,} step{'' if length.steps == 1 else 's'} ({length.because})"
    if length.seconds is not None:
        how = "as steps were measured" if length.measured else "without evaluations"
        text += f", {_hours(length.seconds)} ({how})"
    return f"{text}; {checkpoint}"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"
