"""How many ranks must hold one model together for it to fit in their memory."""

from __future__ import annotations

from distft.inference.parts import Pass
from distft.model import adapters
from distft.model.context import RunContext
from distft.plan.prediction import text_of
from distft.plan.shapes import architecture_of
from distft.plan.states import BYTES
from distft.process.console import Console
from distft.process.memory import memory_given

BESIDE = 0.9  # of a rank's memory is for weights; the rest for what is computed with them


def needed(work: Pass, ranks: int, console: Console) -> int:
    """Ranks of this machine that hold a model together, said if it is more than one: the fewest for which the plan has
    it that the weights fit. 1 where the plan knows no better."""
    if ranks == 1 or adapters.quantized(work.recipe.adapter):
        return 1
    base = RunContext(work.run, work.recipe).base
    here = work.recipe.model.model_copy(update={"path": str(base), "init": None})
    try:
        elements = architecture_of(work.recipe.model_copy(update={"model": here})).parameters
    except Exception:  # noqa: BLE001 - a plan that fails is no reason not to predict
        return 1
    weights, room = elements * BYTES[work.recipe.engine.dtype], room_of_rank(ranks)
    found = fewest(weights, room, ranks)
    if found > 1:
        each = f"each of {ranks} ranks has {text_of(room)} for it"
        console.say(f"--shards {found}: the model takes {text_of(weights)}, and {each}")
    return found


def fewest(weights: int, room: int, ranks: int) -> int:
    """The smallest groups, of equal sizes, in which each rank has room for its share; all together if none has."""
    sizes = (size for size in range(1, ranks + 1) if ranks % size == 0)
    return next((size for size in sizes if weights / size <= BESIDE * room), ranks)


def room_of_rank(ranks: int) -> int:
    """Bytes: of the smallest GPU, or an equal share of the memory that this process and its like may use."""
    import torch

    if not torch.cuda.is_available():
        return memory_given() // ranks
    return min(torch.cuda.get_device_properties(one).total_memory for one in range(torch.cuda.device_count()))
