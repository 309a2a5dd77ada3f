"""What a recipe decides of how ranks share and add up: when gradients are reduced, and whether there is any use."""

from __future__ import annotations

from distft.recipe.adapters import NoAdapter
from distft.recipe.schema import Recipe


def reduces_once(recipe: Recipe, world: int) -> bool:
    """Whether each rank keeps the sum of its micro-batches' gradients to the end of a step, under ZeRO 2 and 3."""
    wanted = recipe.engine.reduce
    if wanted == "auto":
        each = isinstance(recipe.adapter, NoAdapter) or recipe.engine.offload_optimizer
        wanted = "micro_batch" if each else "step"
    return wanted == "step" and recipe.train.global_batch > recipe.train.micro_rows * world


def shares_nothing(recipe: Recipe, world: int) -> bool:
    """Whether ZeRO 1 or 2 has no use: a single rank in fp32, but for runs that were begun before it was so."""
    engine = recipe.engine
    plain = engine.dtype == "fp32" and engine.zero_stage in (1, 2) and not engine.offload_optimizer
    return plain and world == 1 and engine.reduce != "micro_batch"
