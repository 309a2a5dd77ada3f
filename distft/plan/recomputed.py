"""Which layers of a model are computed again in the backward pass, as transformers counts them."""

from __future__ import annotations

from collections.abc import Sequence

from distft.plan.architecture import Architecture, Stack, Weight

NEVER = {"albert", "mpnet"}  # model types whose classes in transformers cannot compute layers again


def convolutions(stack: Stack) -> list[Weight]:
    """Those that make tokens of sound, and not those that tell places from each other."""
    return [one for one in stack.other if one.kind == "convolution" and len(one.shape) == 3 and "pos" not in one.name]


def again(every: int, number: int) -> bool:
    """Whether the layer of this number is computed again, of each first one of `every`; 0: none."""
    return every > 0 and number % every == 0


def recomputed(model: Architecture, every: int) -> Sequence[Sequence[bool]]:
    """Of each stack its layers, in order. Layers over sound count too."""
    found, number = [], 0
    for stack in model.stacks:
        number += len(convolutions(stack)) if stack.extracts else 0
        found.append([again(every, number + one) for one in range(stack.depth)])
        number += stack.depth
    return found


def share(model: Architecture, every: int) -> float:
    """Of the layers that are computed again."""
    flags = [one for own in recomputed(model, every) for one in own]
    return sum(flags) / len(flags) if flags else float(every > 0)
