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
from distft.plan.devices import GB, PCIE, Device
from distft.recipe.schema import Recipe
from distft.recipe.tasks import CausalLM, SpeechSeq2Seq

IN_FP32 = 1 / 16  # of the bf16 peak: fp32 without TF32


@dataclass(frozen=True)
class Shape:
    """Of one micro-batch. `written`: tokens per row of a decoder behind an encoder."""

    rows: int
    tokens: int
    written: int
    targets: int

    def emptiest(self, recipe: Recipe) -> Shape:
        """The least that some micro-batch holds, whatever the data are: a token for each row, and one that is learned.

        Where documents are packed, two rows of which one is less than half full would have been one. Whisper hears 30
        seconds in any case.
        """
        tokens = 1
        if isinstance(recipe.task, CausalLM) and recipe.data.packing:
            tokens = max(1, self.tokens // 2)
        elif isinstance(recipe.task, SpeechSeq2Seq):
            tokens = self.tokens
        return Shape(self.rows, tokens, min(1, self.written), self.rows)


@dataclass(frozen=True)
class Times:
    """Seconds of an optimizer step by what they are spent on.

    Attributes:
        computing, sending: at the same time; sending: between ranks.
        moving: between a GPU and its host's memory, beside both.
        useful: share of the FLOPs that are not there to compute activations again.
    """

    computing: float
    sending: float
    moving: float
    useful: float = 1.0

    @property
    def step(self) -> float:
        return max(self.computing, self.sending) + self.moving


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


def step_times(
    recipe: Recipe, work: float, weights: int, trained: int, device: Device, world: int, per_node: int
) -> Times:
    """Times of an optimizer step on GPUs whose peak is known.

    Args:
        work: FLOPs of one micro-batch of one rank.
        weights, trained: elements of the model, and of those that are trained.
    """
    micro_steps = recipe.train.global_batch / (recipe.train.micro_batch * world)
    assert device.flops is not None
    rate = device.flops * device.reached * (1.0 if recipe.engine.dtype == "bf16" else IN_FP32)
    link = device.link if world <= per_node else min(device.link, per_node * device.between_nodes)
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
    return Times(work * micro_steps / rate, sent / link, moved / (PCIE * GB))
