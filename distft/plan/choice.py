"""What `auto` stands for: the micro-batch and recomputation that are fastest by the plan among those that fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from distft.errors import UserError, first_line
from distft.plan.changes import RECOMPUTE, Change, Predict, changed, kinds_of
from distft.plan.prediction import Prediction, text_of
from distft.plan.shapes import is_known
from distft.recipe.batch import AUTO
from distft.recipe.schema import Recipe
from distft.run.batch import Batch

LEFT_ON_GPU = 1 / 8  # of it: the plan has 0.89 of published peaks in the median (docs/results/plan-literature.md)
LEFT_ON_CPU = 0.4  # of a rank's share: memory that is freed and not returned adds up to 70 % (docs/results/plan.md)
ALIKE = 0.02  # of the time of a step; the plan knows it no better
MOST_ROWS = 128  # at once; more were tried by nobody


@dataclass(frozen=True)
class _Candidate:
    rows: int
    again: str
    found: Prediction

    @property
    def fits(self) -> bool:
        assert self.found.room is not None
        return self.found.peak.total <= (1 - left_free(self.found)) * self.found.room


def choose(recipe: Recipe, nodes: int, per_node: int, predict: Predict) -> Batch:
    """What is settled for a recipe that leaves something open, with a sentence that says why.

    Of all that fit with a margin the fastest by the plan; of those that are as fast (`ALIKE`), or if no speed is known
    of all, that which recomputes least, and of those the largest micro-batch. If the plan knows too little, the least.
    """
    try:
        if not is_known(recipe):
            return least(recipe, "the plan does not know its model type")
        found = list(_candidates(recipe, nodes, per_node, predict))
    except UserError as error:
        return least(recipe, f"the plan says nothing: {first_line(error)}")
    if any(one.found.room is None for one in found):
        return least(recipe, "the memory of a rank is not known")
    fitting = [one for one in found if one.fits]
    if not fitting:
        smallest = min(found, key=lambda one: one.found.peak.total)
        return _batch(smallest, "what takes least, though it may not fit")
    times = [one.found.step_seconds for one in fitting if one.found.step_seconds is not None]
    near = fitting
    if len(times) == len(fitting):
        near = [one for one in fitting if (one.found.step_seconds or 0.0) <= (1 + ALIKE) * min(times)]
    best = min(near, key=lambda one: (RECOMPUTE.index(one.again), -one.rows))
    why = "the fastest by the plan that fits" if times else "the most rows with the least recomputation that fit"
    return _batch(best, why)


def left_free(found: Prediction) -> float:
    """Share of a rank's memory that is to stay free."""
    return LEFT_ON_CPU if found.device is None else LEFT_ON_GPU


def _candidates(recipe: Recipe, nodes: int, per_node: int, predict: Predict) -> Iterator[_Candidate]:
    own, again = recipe.train.global_batch // (nodes * per_node), recipe.model.activation_checkpointing
    asked = recipe.train.micro_batch
    rows = [size for size in range(1, MOST_ROWS + 1) if own % size == 0] if asked == AUTO else [asked]
    for size, kind in product(rows, kinds_of(recipe) if again == AUTO else (again,)):
        yield _Candidate(size, kind, predict(with_values(recipe, size, kind), nodes))


def with_values(recipe: Recipe, rows: int, again: str) -> Recipe:
    values = (("train.micro_batch", rows), ("model.activation_checkpointing", again))
    return changed(recipe, [Change(key, value, 0.0) for key, value in values])


def _batch(one: _Candidate, why: str) -> Batch:
    peak, room = one.found.peak.total, one.found.room
    assert room is not None
    free = text_of(left_free(one.found) * room)
    said = f"{why}: {text_of(peak)} at most of {text_of(room)}, {free} of which are to stay free"
    return Batch(one.rows, one.again, said, peak, room)


def least(recipe: Recipe, why: str) -> Batch:
    """Without a plan: what takes the least memory."""
    asked, again = recipe.train.micro_batch, recipe.model.activation_checkpointing
    rows = 1 if asked == AUTO else asked
    return Batch(rows, "full" if again == AUTO else again, f"{why}, so this is what takes least; set them if you know")
