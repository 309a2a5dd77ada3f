"""Changes that make a recipe fit: the smallest ones, each as an override to copy; and all that fit, as a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from distft.plan.prediction import Prediction
from distft.plan.shapes import can_recompute
from distft.recipe.load import contradictions
from distft.recipe.schema import Recipe

Predict = Callable[[Recipe, int], Prediction]  # of a recipe on a number of nodes
MOST = 3  # changes at once
RECOMPUTE = ("off", "selective", "full")  # by what it saves


@dataclass(frozen=True)
class Change:
    """Attributes: key: of the recipe, or "nodes"; cost: how much of speed or of the result it takes, to choose by."""

    key: str
    value: Any
    cost: float

    @property
    def override(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"--nodes {value}" if self.key == "nodes" else f"{self.key}={value}"


@dataclass(frozen=True)
class Way:
    """Changes that together make it fit."""

    changes: Sequence[Change]
    prediction: Prediction

    @property
    def overrides(self) -> str:
        return " ".join(change.override for change in self.changes)


def changed(recipe: Recipe, changes: Sequence[Change]) -> Recipe:
    for change in changes:
        section, _, key = change.key.partition(".")
        if key:
            updated = getattr(recipe, section).model_copy(update={key: change.value})
            recipe = recipe.model_copy(update={section: updated})
    return recipe


def possible(recipe: Recipe, nodes: int) -> Iterator[Change]:
    """Changes that save memory. The global batch stays, so that all but the last kind leave the result alone."""
    batch, cost = recipe.train.micro_rows, 1.0
    while batch > 1:
        batch //= 2
        if recipe.train.global_batch % batch == 0:
            yield Change("train.micro_batch", batch, cost)
        cost += 0.5
    now, kinds = RECOMPUTE.index(recipe.model.activation_checkpointing), kinds_of(recipe)
    for rank, wanted in enumerate(kinds[now + 1 :], start=now):
        yield Change("model.activation_checkpointing", wanted, 1.25 + 0.25 * rank)
    for stage in range(recipe.engine.zero_stage + 1, 4):
        yield Change("engine.zero_stage", stage, 1.0 + (stage == 3))
    if recipe.engine.reduce == "step":
        yield Change("engine.reduce", "micro_batch", 0.5)
    if not recipe.engine.offload_optimizer and recipe.engine.zero_stage > 0:
        yield Change("engine.offload_optimizer", True, 4.0)
    if recipe.engine.zero_stage == 3 and not recipe.engine.offload_params:
        yield Change("engine.offload_params", True, 5.0)
    if getattr(recipe.adapter, "quantize", "") is None:
        yield Change("adapter.quantize", "nf4", 6.0)
    for times in (2, 4, 8):
        yield Change("nodes", nodes * times, 3.0 * times)
    rows = recipe.data.row_tokens
    for part in (2, 4):
        yield Change("data.row_tokens", rows // part, 8.0 * part)


def kinds_of(recipe: Recipe) -> Sequence[str]:
    """Kinds of recomputation that the model's class knows."""
    return RECOMPUTE if can_recompute(recipe) else RECOMPUTE[:1]


def ways(
    recipe: Recipe,
    nodes: int,
    predict: Predict,
    most: int = 3,
    may_change: Callable[[str], bool] = lambda key: True,
) -> list[Way]:
    """The cheapest ways that fit; none contains another one.

    Args:
        may_change: says whether a key may have another value.
    """
    found: list[Way] = []
    allowed = [change for change in possible(recipe, nodes) if may_change(change.key)]
    tried = [
        chosen
        for count in range(1, MOST + 1)
        for chosen in combinations(allowed, count)
        if len({change.key for change in chosen}) == count
    ]
    for chosen in sorted(tried, key=lambda changes: sum(change.cost for change in changes)):
        if any(set(way.changes) <= set(chosen) for way in found):
            continue
        wanted = next((change.value for change in chosen if change.key == "nodes"), nodes)
        other = changed(recipe, chosen)
        prediction = predict(other, wanted)
        if prediction.fits and _may_run(other, prediction.world):
            found.append(Way(chosen, prediction))
        if len(found) == most:
            break
    return found


def _may_run(recipe: Recipe, world: int) -> bool:
    """Whether the recipe is one that is not refused on so many ranks."""
    return recipe.train.global_batch % (recipe.train.micro_rows * world) == 0 and not any(contradictions(recipe))


def lowest_stage(recipe: Recipe) -> int:
    """The least ZeRO stage that runs, as `engine.configuration.stage` has it, which imports torch."""
    if recipe.engine.dtype == "fp32":
        return 0
    return 2 if recipe.engine.grad_dtype == "fp32" else 1


def grid(recipe: Recipe, nodes: Sequence[int], predict: Predict) -> list[tuple[dict[str, Any], Prediction]]:
    """All of nodes x ZeRO stage x micro-batch x recomputation that fit, the fastest first."""
    batches = [size for size in (1, 2, 4, 8, 16, 32) if recipe.train.global_batch % size == 0]
    found = []
    stages = [stage for stage in range(4) if stage == 3 or stage >= lowest_stage(recipe)]
    for number, stage, batch, again in product(nodes, stages, batches, kinds_of(recipe)):
        keys = (("engine.zero_stage", stage), ("train.micro_batch", batch), ("model.activation_checkpointing", again))
        prediction = predict(changed(recipe, [Change(key, value, 0.0) for key, value in keys]), number)
        if prediction.fits and recipe.train.global_batch % (batch * prediction.world) == 0:
            found.append(({"nodes": number, **dict(keys)}, prediction))
    return sorted(found, key=lambda one: (one[1].step_seconds or 0.0, one[1].peak.total))
