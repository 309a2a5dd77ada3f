"""The plan within a run: what it settles for `auto`, its prediction at the start, and its advice if memory runs out."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch

from distft.errors import first_line
from distft.plan import record
from distft.plan.changes import ways
from distft.plan.choice import choose, least
from distft.plan.devices import Device, present
from distft.plan.estimate import Estimator
from distft.plan.prediction import text_of
from distft.process import distributed
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.process.memory import memory_given, memory_of_rank
from distft.recipe.changes import Difference
from distft.recipe.load import check_sizes
from distft.recipe.schema import Recipe
from distft.run.batch import Batch, is_open, keep_batch, read_batch
from distft.run.folder import RunDir

MOST_WAYS = 3


def settle(run: RunDir, recipe: Recipe, base: Path, ranks: Ranks, console: Console) -> Recipe:
    """The recipe without `auto`: as an earlier attempt has settled it, else by the plan for the smallest device of all
    ranks, which is written into the run folder. Collective.

    Args:
        base: the folder of the base model.

    Raises:
        UserError: what an earlier attempt has settled cannot be read, or does not divide among these ranks.
    """
    if not is_open(recipe):
        return recipe
    devices = [json.loads(text) for text in distributed.gather_text(json.dumps(_memory()))]

    def look() -> dict[str, object]:
        if (kept := read_batch(run)) is not None:
            return {**asdict(kept), "why": f"as this run has settled it ({run.batch.name})"}
        name, _ = min((one for one in devices if one[0]), key=lambda one: one[1], default=(None, 0))
        smallest = min(size for _, size in devices)
        found = _chosen(recipe, base, ranks.world, None if name is None else present(name, smallest), smallest)
        keep_batch(run, found)
        return asdict(found)

    found = Batch(**distributed.on_rank_0(ranks, "batch", look))
    console.say(f"auto: {found.overrides(recipe)}, {found.why}")
    settled = found.applied(recipe)
    check_sizes(settled, ranks.world)
    return settled


def _memory() -> tuple[str | None, int]:
    """This rank's GPU with its bytes; or None, and its share of the memory that its node's ranks may use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(), torch.cuda.get_device_properties("cuda").total_memory
    return None, memory_of_rank()


def _chosen(recipe: Recipe, base: Path, world: int, device: Device | None, share: int) -> Batch:
    """`share`: bytes of a rank on a CPU."""
    per_node = _per_node(world)
    here = recipe.model.model_copy(update={"path": str(base), "init": None})
    memory = memory_given() if device is not None else share * per_node
    try:
        wanted = recipe.model_copy(update={"model": here})
        return choose(wanted, world // per_node, per_node, Estimator(per_node, device, memory).predict)
    except Exception as error:  # noqa: BLE001 - a plan that fails is no reason not to run
        return least(recipe, f"the plan has failed ({type(error).__name__}: {first_line(error)})")


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
        record.write(logs, record.quick(wanted, ranks.world, _per_node(ranks.world), _device(), memory_given()))
    except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
        console.say(f"no prediction of memory was written down: {first_line(error)}")


def advice(recipe: Recipe) -> tuple[str, list[str]]:
    """What the plan says when memory has run out: a clause, empty if it says nothing; and changes with which the run
    can go on and fits, each to copy, none if the plan has it that the run fits as it is."""
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        per_node = _per_node(world)
        found = record.quick(recipe, world, per_node, _device(), memory_given())
        estimator = Estimator(per_node, _device(), memory_given())
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
