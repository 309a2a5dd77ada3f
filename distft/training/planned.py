"""The plan within a run: its prediction is written down at the start, and quoted if memory runs out."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from distft.errors import first_line
from distft.plan import record
from distft.plan.changes import ways
from distft.plan.devices import Device, present
from distft.plan.estimate import Estimator
from distft.plan.place import memory_here
from distft.plan.prediction import text_of
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.changes import Difference
from distft.recipe.schema import Recipe

MOST_WAYS = 3


def write_down(recipe: Recipe, base: Path, logs: Path, ranks: Ranks, console: Console) -> None:
    """Rank 0 writes what it expects of memory and time; a sentence says why if it does not. Nothing else depends on it.

    Args:
        base: the folder of the base model.
        logs: the folder of this attempt's logs.
    """
    if not ranks.first:
        return
    here = recipe.model.model_copy(update={"path": str(base), "init": None})
    try:
        wanted = recipe.model_copy(update={"model": here})
        record.write(logs, record.quick(wanted, ranks.world, _per_node(ranks.world), _device(), memory_here()))
    except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
        console.say(f"no prediction of memory was written down: {first_line(error)}")


def advice(recipe: Recipe) -> tuple[str, list[str]]:
    """What the plan says when memory has run out: a clause, empty if it says nothing; and changes with which the run
    can go on and fits, each to copy, none if the plan has it that the run fits as it is."""
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        per_node = _per_node(world)
        found = record.quick(recipe, world, per_node, _device(), memory_here())
        estimator = Estimator(per_node, _device(), memory_here())
        out = [] if found.fits else ways(recipe, world // per_node, estimator.predict, MOST_WAYS, may_change)
    except Exception:  # noqa: BLE001 - there is an error to be told already
        return "", []
    largest = f"{found.blame}, {text_of(found.peak.terms[found.blame])}"
    clause = f"the plan expects {text_of(found.peak.total)} ({found.peak.name}; most of it {largest})"
    return clause, [way.overrides for way in out]


def may_change(key: str) -> bool:
    """Whether a run with a checkpoint goes on with another value, of itself or with --allow."""
    return key == "nodes" or Difference(key, None, None).rule != "refused"


def _per_node(world: int) -> int:
    return min(world, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _device() -> Device | None:
    """None: a CPU."""
    if not torch.cuda.is_available():
        return None
    return present(torch.cuda.get_device_name(), torch.cuda.get_device_properties("cuda").total_memory)
