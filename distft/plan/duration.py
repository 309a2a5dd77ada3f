"""Time of a step: matrix products and attention, memory that is crossed, bytes over links, and kernels to be launched.

A micro-batch takes its FLOPs over the share of the peak that kernels reach, and beside that the bytes that go into
matrix products and come out, as often as the operations between them read and write them, over the memory's bandwidth
(both terms of the roofline of Williams et al. 2009, doi:10.1145/1498765.1498785, one after the other). The second term
is why narrow models, and GPUs with more FLOPs per byte, reach a smaller share. No micro-batch is shorter than it takes
to launch its kernels.

FLOPs are those of `training/flops.py` (Kaplan et al. 2020, arXiv:2001.08361, section 2.1), with what activation
checkpointing computes again. Data between ranks are those of ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054,
section 7). They cross the links of a node, and before that, once for each node, those between nodes, over the links of
all its GPUs. What is sent hides partly behind what is computed.

The constants were estimated from half of the figures in `benchmarks/plan_literature.json`; `benchmarks/plan_literature`
makes the estimate, and tries it on the other half.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from distft.plan.architecture import Architecture, Layers, Stack
from distft.plan.devices import PCIE, Device
from distft.recipe.schema import Recipe

REACHED = 1.0  # of the fastest matrix product of a GPU, by those of a step; less did not fit figures better
ATTENTION = 0.7  # of what matrix products reach: FlashAttention-2 (arXiv:2307.08691) has 50 to 73 % of an A100's peak
CROSSED = 14.0  # times that memory is crossed in each pass, by transformers' single kernels; estimated
LINKS = 0.35  # of the links within a node; estimated
HIDDEN = 0.59  # of sending behind computing, or of computing behind sending; estimated
LAUNCH = 1.2e-3  # seconds for the kernels of one layer in one pass; estimated
LAUNCH_GATHERED = 3.2e-3  # the same under stage 3, with its hooks around each module; estimated
IN_FP32 = 1 / 16  # of the bf16 peak: fp32 without TF32
REUSED = 1_000_000_000  # elements within which stage 3 keeps a weight that comes again (`engine.configuration`)
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """Of one micro-batch. `written`: tokens per row of a decoder behind an encoder."""

    rows: int
    tokens: int
    written: int
    targets: int


@dataclass(frozen=True)
class Work:
    """What one rank computes in one micro-batch.

    Attributes:
        products, attention: FLOPs of matrix products, and of attention over pairs of tokens.
        crossed: numbers that go into matrix products and come out of them, in one pass.
        passes: backward counts twice, and recomputation once, or by its share of the layers.
        layers: in all.
    """

    products: float
    attention: float
    crossed: float
    passes: float
    layers: int

    @property
    def flops(self) -> float:
        return self.products + self.attention


def work(model: Architecture, added: int, whole: bool, shape: Shape, again: float) -> Work:
    """Forward and backward over one micro-batch.

    Args:
        added: elements of adapters.
        whole: all weights are trained, else gradients flow through all of them but few have one.
        again: share of the layers whose activations are computed a second time.
    """
    times = 2.0 * (2 + again)  # forward, gradients of activations
    products = attention = crossed = 0.0
    for stack in model.stacks:
        tokens = shape.rows * (shape.written if stack.role == "decoder" else shape.tokens)
        weights = sum(_active(layers) * layers.count for layers in stack.layers)
        products += tokens * weights * (times + 2.0 * whole)
        attention += shape.rows * _attention(stack, shape) * (3 + again)
        crossed += tokens * sum(_ends(layers) * layers.count for layers in stack.layers)
    head = sum(weight.size for weight in model.head if weight.kind == "matrix")
    if model.tied:
        head += model.vocabulary * model.stacks[-1].hidden
    tokens = shape.rows * shape.tokens
    products += 2.0 * head * shape.targets * (2 + whole) + 2.0 * added * tokens * (not whole)
    crossed += shape.targets * (model.vocabulary + model.stacks[-1].hidden)
    count = sum(layers.count for stack in model.stacks for layers in stack.layers)
    return Work(products, attention, crossed, 3 + again, count)


def _active(layers: Layers) -> float:
    """Elements of one layer that a token is multiplied with."""
    forward = layers.feed_forward
    share = forward.chosen / forward.experts if forward.experts else 1.0
    return sum(one.size * (share if one.experts else 1.0) for one in layers.weights if one.kind == "matrix")


def _ends(layers: Layers) -> float:
    """Numbers of one token on both sides of the matrices that it is multiplied with."""
    forward = layers.feed_forward
    share = forward.chosen / forward.experts if forward.experts else 1.0
    matrices = [one for one in layers.weights if one.kind == "matrix"]
    each = ((one.shape[0] * share, one.shape[1:]) if len(one.shape) == 3 else (1, one.shape) for one in matrices)
    return sum(times * sum(ends) for times, ends in each)


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


@dataclass(frozen=True)
class Sizes:
    """Elements: `weights` of the model, `trained` of them, `again` those that stage 3 gathers once more."""

    weights: int
    trained: int
    again: int = 0


def gathered_again(model: Architecture) -> int:
    """Elements that stage 3 gathers a third time if layers are computed again.

    A layer is gathered forward, and before it is computed again. What of it comes again within the engine's reuse
    distance, in its backward pass, stays until then: all of most models' layers, but not of those that have more
    elements than that (`benchmarks/plan_gathered.py` counts).
    """
    near = min(REUSED, model.parameters // 8)
    sizes = ((sum(one.size for one in many.weights), many.count) for stack in model.stacks for many in stack.layers)
    return sum(max(0, size - near) * count for size, count in sizes)


@dataclass(frozen=True)
class Parts:
    """Seconds of one micro-batch as if everything ran at its full rate.

    Attributes:
        products, attention: at the speed of the GPU's fastest matrix product.
        crossed: at its memory's bandwidth, crossed once in each pass.
        launches: not seconds: layers times passes.
        within, between: over the links of a node, and over those between nodes (0 on one node).
        moved: between GPU and host, beside all else.
    """

    products: float
    attention: float
    crossed: float
    launches: float
    within: float
    between: float
    moved: float


@dataclass(frozen=True)
class Rates:
    """The constants of this module, as they hold for a recipe. `launch`: seconds of a layer in a pass."""

    reached: float
    attention: float
    crossed: float
    links: float
    hidden: float
    launch: float


def rates(recipe: Recipe) -> Rates:
    launch = LAUNCH_GATHERED if recipe.engine.zero_stage == 3 else LAUNCH
    return Rates(REACHED, ATTENTION, CROSSED, LINKS, HIDDEN, launch)


def parts(recipe: Recipe, done: Work, sizes: Sizes, device: Device, world: int, per_node: int) -> Parts:
    """Of a step's end only what is sent and moved counts, shared by its micro-batches: the update itself is short."""
    width = 2 if recipe.engine.dtype == "bf16" else 4
    peak = peak_of(recipe, device) * (device.reached or device.matmul)
    if device.reached is not None:  # by all that is computed, however it is done
        done = Work(done.flops, 0.0, 0.0, done.passes, 0)
    steps = micro_steps(recipe, world)
    sent = _sent(recipe, sizes, width, steps) * (world - 1) / world
    moved = 0.0
    if recipe.engine.offload_optimizer:
        moved += sizes.trained / world * (_gradient(recipe) + width) / steps
    if recipe.engine.offload_params:
        moved += 2 * sizes.weights / world * width
    return Parts(
        done.products / peak,
        done.attention / peak,
        done.crossed * width * done.passes / device.bandwidth,
        done.layers * done.passes,
        sent / device.link,
        sent / (per_node * device.between) if world > per_node else 0.0,
        moved / (PCIE * GB),
    )


def peak_of(recipe: Recipe, device: Device) -> float:
    """FLOP/s in the recipe's dtype."""
    assert device.flops is not None
    return device.flops * (1.0 if recipe.engine.dtype == "bf16" else IN_FP32)


def micro_steps(recipe: Recipe, world: int) -> float:
    return recipe.train.global_batch / (recipe.train.micro_rows * world)


def _gradient(recipe: Recipe) -> int:
    return 2 if recipe.engine.dtype == "bf16" and recipe.engine.grad_dtype != "fp32" else 4


def _sent(recipe: Recipe, sizes: Sizes, width: int, steps: float) -> float:
    """Bytes that reach each of very many ranks for one micro-batch."""
    stage, gradients = recipe.engine.zero_stage, sizes.trained * _gradient(recipe)
    if stage == 3:
        return (2 * sizes.weights + sizes.again) * width + gradients
    if stage == 2:
        return gradients + sizes.trained * width / steps
    return (gradients + sizes.trained * width) / steps


@dataclass(frozen=True)
class Times:
    """Seconds by what they are spent on. `within`, `between`: sending within a node and between nodes, which partly
    hides behind computing; `moving`: between GPU and host, beside all else."""

    computing: float
    within: float
    between: float
    moving: float
    hidden: float = HIDDEN
    at_peak: float = 0.0  # seconds of all FLOPs at the GPU's peak

    @property
    def sending(self) -> float:
        return self.within + self.between

    @property
    def step(self) -> float:
        shorter, longer = sorted((self.computing, self.sending))
        return longer + (1 - self.hidden) * shorter + self.moving


def times(found: Parts, rate: Rates, count: float = 1.0) -> Times:
    """Of `count` micro-batches."""
    computed = (found.products + found.attention / rate.attention) / rate.reached + rate.crossed * found.crossed
    computed = max(computed, rate.launch * found.launches)
    within = found.within / rate.links
    return Times(count * computed, count * within, count * found.between, count * found.moved, rate.hidden)


def seconds(found: Parts, rate: Rates) -> float:
    """Of one micro-batch."""
    return times(found, rate).step


def step_times(recipe: Recipe, done: Work, sizes: Sizes, device: Device, world: int, per_node: int) -> Times:
    """Of an optimizer step on `world` ranks, each of whose micro-batches is `done`, with GPUs whose peak is known."""
    found, count = parts(recipe, done, sizes, device, world, per_node), micro_steps(recipe, world)
    return replace(times(found, rates(recipe), count), at_peak=count * done.flops / peak_of(recipe, device))
