"""Time of a step, about: FLOPs over what a GPU reaches of its peak, and bytes over links.

FLOPs are those of `training/flops.py` (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), with what activation
checkpointing computes again. Data between ranks are those of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054,
section 7). Between nodes each node's part crosses once, over the links of all its GPUs. A step takes the longer of the
two, as if they overlapped wholly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distft.plan.architecture import Architecture, Layers, Stack
from distft.plan.devices import BETWEEN_NODES, PCIE, Device
from distft.recipe.schema import Recipe

REACHED = 0.45  # of a GPU's peak, by tuned training of large models
IN_FP32 = 1 / 16  # of the bf16 peak: fp32 without TF32
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """Of one micro-batch. `written`: tokens per row of a decoder behind an encoder."""

    rows: int
    tokens: int
    written: int
    targets: int


def flops(model: Architecture, trained: Mapping[str, int], whole: bool, shape: Shape, again: bool) -> float:
    """Of forward and backward over one micro-batch.

    Args:
        trained: elements that are trained, by "layers" and "head".
        whole: all weights are trained, else gradients flow through all of them but few have one.
        again: activations are computed a second time.
    """
    times = 2.0 * (2 + again)  # forward, gradients of activations
    total = 0.0
    for stack in model.stacks:
        tokens = shape.rows * (shape.written if stack.role == "decoder" else shape.tokens)
        weights = sum(_active(layers) * layers.count for layers in stack.layers)
        total += tokens * weights * (times + 2.0 * whole)
        total += shape.rows * _attention(stack, shape) * (3 + again)
    head = sum(weight.size for weight in model.head if weight.kind == "matrix")
    if model.tied:
        head += model.vocabulary * model.stacks[-1].hidden
    tokens = shape.rows * shape.tokens
    return total + 2.0 * head * shape.targets * (2 + whole) + 2.0 * sum(trained.values()) * tokens * (not whole)


def _active(layers: Layers) -> float:
    """Elements of one layer that a token is multiplied with."""
    forward = layers.feed_forward
    share = forward.chosen / forward.experts if forward.experts else 1.0
    return sum(one.size * (share if one.experts else 1.0) for one in layers.weights if one.kind == "matrix")


def _attention(stack: Stack, shape: Shape) -> float:
    """FLOPs of forward over the pairs of tokens of one row."""
    length = shape.written if stack.role == "decoder" else shape.tokens
    total = 0.0
    for layers in stack.layers:
        attention = layers.attention
        if attention is None:
            continue
        side = min(length, attention.window or length)
        pairs = side * (length - side / 2) * (1 if attention.causal else 2)
        pairs += length * shape.tokens * attention.over_encoder
        total += layers.count * 2.0 * attention.heads * (attention.size + attention.value_size) * pairs
    return total


def step_seconds(
    recipe: Recipe, work: float, weights: int, trained: int, device: Device, world: int, per_node: int
) -> float:
    """Seconds of an optimizer step.

    Args:
        work: FLOPs of one micro-batch of one rank.
        weights, trained: elements of the model, and of those that are trained.
    """
    micro_steps = recipe.train.global_batch / (recipe.train.micro_batch * world)
    rate = device.flops * REACHED * (1.0 if recipe.engine.dtype == "bf16" else IN_FP32)
    link = device.link if world <= per_node else min(device.link, per_node * BETWEEN_NODES * GB)
    size = 2 if recipe.engine.dtype == "bf16" else 4
    gradient = 4 if recipe.engine.grad_dtype == "fp32" else size
    share = (world - 1) / world
    stage = recipe.engine.zero_stage
    each = 2 * weights * size + trained * gradient if stage == 3 else trained * gradient if stage == 2 else 0
    once = 0 if stage == 3 else trained * (size + (gradient if stage < 2 else 0))
    sent = share * (each * micro_steps + once)
    moved = 0.0
    if recipe.engine.offload_optimizer:
        moved += trained / world * (gradient + size)
    if recipe.engine.offload_params:
        moved += 2 * micro_steps * weights / world * size
    return max(work * micro_steps / rate, sent / link) + moved / (PCIE * GB)
