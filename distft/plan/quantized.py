"""A base in 4 bits (`adapter.quantize: nf4`): which weights, the bytes that they take, and what using them adds.

QLoRA (Dettmers et al. 2023, arXiv:2305.14314): 4 bits per element, a scale for each 64 of them, which is quantised
itself. As bitsandbytes 0.50 lays them out: scales of 8 bits with one in fp32 for each 256, and for each weight a copy
of the table of these 8 bits, one of NF4's 16 values, and the scales' mean. transformers replaces the linear layers but
those that make logits; norms, embeddings, biases, convolutions and experts in one tensor stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from distft.plan.architecture import Architecture, Weight
from distft.plan.trained import is_layer
from distft.recipe.adapters import Lora
from distft.recipe.schema import Recipe
from distft.recipe.tasks import MultiTask

BLOCK, SCALES = 64, 256  # elements with one scale, and scales with one of their own
TABLES = 4 * (256 + 16 + 1)


def in_four_bits(model: Architecture, recipe: Recipe) -> Sequence[Weight]:
    """The weights that are quantised; of several tasks none is."""
    adapter = recipe.adapter
    if not isinstance(adapter, Lora) or adapter.quantize is None or isinstance(recipe.task, MultiTask):
        return ()
    layers = [*(one for stack in model.stacks for many in stack.layers for one in many.named())]
    others = [one for stack in model.stacks for one in stack.other]
    return [one for one in (*layers, *others) if is_layer(one) and one.name.rpartition(".")[0] not in model.outputs]


def size_of(elements: int) -> int:
    """Bytes of a weight in 4 bits."""
    scales = -(-elements // BLOCK)
    return -(-elements // 2) + scales + 4 * -(-scales // SCALES) + TABLES


def unpacked(weights: Sequence[Weight], width: int) -> int:
    """Most bytes while a layer computes: one weight in the model's numbers, made from its bits, and its scales in fp32.

    Large batches are multiplied with it in forward, all in backward.
    """
    return max((width * one.size + 4 * -(-one.size // BLOCK) for one in weights), default=0)


def saved(weights: Sequence[Weight], width: int) -> int:
    """Bytes that they take less than in the model's numbers."""
    return sum(width * one.size - size_of(one.size) for one in weights)
