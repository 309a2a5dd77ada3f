"""What the engine of one rank holds for long: weights, masters, moments, gradients and buckets, in bytes.

ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054, section 5) divides moments and masters (stage 1), gradients (stage 2)
and weights (stage 3) by the number of ranks. The formulas here are those of the engine as it runs, DeepSpeed's padding,
buckets and buffers included; `benchmarks/plan_states.py` counts the tensors that they are compared with.

In the formulas T and F are the numbers of trained and frozen elements, W is the number of ranks, b and g the bytes of
an element of a weight and of a gradient, and P the elements of one rank's part of T.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Moment = Literal["rest", "accumulating", "reduced"]
"""After a step; between two micro-batches of a step; after the last micro-batch, before the update."""
BYTES = {"fp32": 4, "bf16": 2}
BUCKET = 500_000_000  # this and the other limits are those of `distft.engine.configuration`, which imports torch
SHARDED_BUCKET, PARTS = 100_000_000, 8


@dataclass(frozen=True)
class Sharding:
    """How weights and their states are kept.

    Attributes:
        stage: the ZeRO stage that runs (`distft.engine.configuration.stage`).
        grad_dtype: in which gradients are added up; that of the weights, or fp32.
        accumulates: a step has more than one micro-batch.
        offload: masters and moments are in host memory (`engine.offload_optimizer`).
        moments: fp32 tensors that are kept per element: 2 for Adam, and 2 more for AdaLoRA.
        once: under stages 2 and 3 gradients of several micro-batches are reduced once (`engine.reduce`).
    """

    world: int
    stage: int
    dtype: str
    grad_dtype: str
    accumulates: bool = False
    offload: bool = False
    moments: int = 2
    once: bool = False

    @property
    def weight_bytes(self) -> int:
        return BYTES[self.dtype]

    @property
    def grad_bytes(self) -> int:
        return BYTES[self.grad_dtype]

    @property
    def mixed(self) -> bool:
        """Gradients in fp32 beside weights in bf16."""
        return self.grad_dtype != self.dtype


@dataclass(frozen=True)
class States:
    """Bytes on one rank, by term. `offload`: what offloading adds, gradients included; in host memory but for one
    weight's gradient under stages 1 and 2."""

    weights: int
    masters: int
    moments: int
    gradients: int
    buckets: int
    offload: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.masters + self.moments + self.gradients + self.buckets + self.offload


def state_bytes(
    trained: Sequence[int], frozen: Iterable[int], sharding: Sharding, at: Moment = "reduced", rank: int | None = None
) -> States:
    """What a rank holds.

    Args:
        trained: elements of each trained weight, in the model's order; the bounds between ranks fall into weights.
        frozen: elements of each frozen one.
        rank: None: the fullest; they differ under stages 1 and 2 by the weights that lie on their bounds.
    """
    frozen = tuple(frozen)
    if sharding.stage == 0:
        return _replicated(sum(trained), sum(frozen), sharding, at)
    if sharding.stage == 3:
        return _all_sharded(trained, frozen, sharding, at)
    return _optimizer_sharded(trained, sum(frozen), sharding, at, rank)


def _replicated(trained: int, frozen: int, sharding: Sharding, at: Moment) -> States:
    """Stage 0, fp32: 4 (T + F) of weights, which are their own masters; 8 T of moments; 4 T of gradients from the first
    backward to the update."""
    gradients = 0 if at == "rest" else 4 * trained
    return States(4 * (trained + frozen), 0, 4 * sharding.moments * trained, gradients, 0)


def _optimizer_sharded(trained: Sequence[int], frozen: int, sharding: Sharding, at: Moment, rank: int | None) -> States:
    """Stages 1 and 2. One buffer holds all trained weights, padded to whole pairs per rank: P = 2 ceil(T / 2 W).

    b (W P + F) of weights; 4 P of masters; 8 P of moments. Of gradients, once they are reduced, b times the elements of
    all weights that lie in this rank's part with at least one element, or, with gradients in fp32 beside bf16, 4 P.
    Stage 2 has that between micro-batches too. Stage 1 reduces only in the last one: before that it holds all
    gradients, b T, and a bucket that it has not used yet. So does stage 2 if gradients are reduced once, g T and no
    bucket.

    Offloading adds, for good: 4 P of gradients for the update, b P of updated weights, twice b times the largest weight
    to pass gradients through; under stage 2 gradients of earlier micro-batches, unless they are in fp32 beside bf16.
    """
    part = partition(sum(trained), sharding.world)
    weights = sharding.weight_bytes * (part * sharding.world + frozen)
    parts = in_parts(trained, part, sharding.world)
    held = max(map(sum, parts)) if rank is None else sum(parts[rank])
    own = sharding.grad_bytes * (part if sharding.mixed else held)
    gradients = buckets = offload = 0
    if at == "accumulating" and sharding.stage == 1:
        gradients = sharding.weight_bytes * sum(trained)
        buckets = sharding.weight_bytes * bucket(sum(trained), sharding)
    elif at == "accumulating" and sharding.once:
        gradients = sharding.grad_bytes * sum(trained)
    elif at != "rest" and (sharding.mixed or not sharding.offload):
        gradients = own
    if sharding.offload:
        offload = 4 * part + sharding.weight_bytes * (part + 2 * max(trained))
        offload += own if sharding.accumulates and sharding.stage == 2 and not sharding.mixed else 0
    return States(weights, 4 * part, 4 * sharding.moments * part, gradients, buckets, offload)


def _all_sharded(trained: Sequence[int], frozen: Sequence[int], sharding: Sharding, at: Moment) -> States:
    """Stage 3. Each weight is padded to the ranks by itself: P = sum of ceil(t / W), and likewise of the frozen ones.

    b times both of weights, and once more whole those that are so small that they stay gathered; 4 P of masters; 8 P
    of moments; g P of gradients and a bucket, both from the start to the end. Offloading adds 4 P of gradients. Reduced
    once they are whole between micro-batches, g T beside that, and in fp32 beside bf16 there is no bucket.
    """
    part, still = shards(trained, sharding.world), shards(frozen, sharding.world)
    whole = sum(trained) + sum(frozen)
    persistent = sum(size for size in (*trained, *frozen) if size <= persistence_threshold(whole))
    return States(
        weights=sharding.weight_bytes * (part + still + persistent),
        masters=4 * part,
        moments=4 * sharding.moments * part,
        gradients=sharding.grad_bytes * (part + (sum(trained) if sharding.once and at == "accumulating" else 0)),
        buckets=0 if sharding.once and sharding.mixed else sharding.grad_bytes * bucket(sum(trained), sharding),
        offload=4 * part if sharding.offload else 0,
    )


def partition(trained: int, world: int) -> int:
    """Elements of one rank's part of a flat buffer under stages 1 and 2, padding included."""
    return 2 * -(-trained // (2 * world))


def shards(sizes: Iterable[int], world: int) -> int:
    """Elements on one rank of weights that are sharded one by one, as stage 3 does."""
    return sum(-(-size // world) for size in sizes)


def in_parts(sizes: Sequence[int], part: int, world: int) -> list[list[int]]:
    """For each rank the sizes of the weights that lie in its part, wholly or not.

    Args:
        part: length of each part; the weights lie in a row, and the first part begins with the first one.
    """
    held: list[list[int]] = [[] for _ in range(world)]
    end = 0
    for size in sizes:
        start, end = end, end + size
        for number in range(start // part, -(-end // part)):
            held[number].append(size)
    return held


def bucket(trained: int, sharding: Sharding) -> int:
    """Elements of gradients that are reduced at once, at most."""
    if sharding.stage == 3:
        most, part = SHARDED_BUCKET, trained // PARTS
    else:
        most, part = BUCKET // (2 if sharding.mixed else 1), trained
    return min(most, max(part + part % 2, 100_000))


def persistence_threshold(elements: int) -> int:
    """Elements of the largest weight that stage 3 leaves whole on each rank."""
    return min(100_000, elements // 10_000)


def reduction_bytes(trained: Sequence[int], sharding: Sharding, rank: int | None = None) -> int:
    """What a rank needs beyond its states at rest while the gradients of a step's last micro-batch are reduced.

    B are the elements of a bucket, C those of what is reduced at once: B, or the largest weight if that is larger.
    Stage 0: all gradients, and with several ranks a flat copy, 4 T + 4 B. Stage 1: all gradients, and the bucket that
    they move to, b T + b B. Stage 2: the bucket and a flat copy that is reduced, b B + b C, and its own part, if not
    all gradients fit into one bucket; once more if there is one from earlier micro-batches. With gradients in fp32
    beside bf16 a copy in fp32 too, 4 C, and its own part once, 4 P. Stage 3: beside the bucket, which it always has,
    what interleaves the parts, and gloo's copy of that, 2 g B; or a weight that is larger than that.

    Reduced once, under stage 2: all gradients and the bucket that they move to or a flat copy, g T + g C, and its own
    part, if not all fit into one bucket, or in fp32 beside bf16. Under stage 3: all of them beside what is above.

    What autograd holds at that moment is not in it: the gradients that it makes just then, and under stage 3 the
    weights that are gathered for them.
    """
    whole = sum(trained)
    held = bucket(whole, sharding) if sharding.stage else min(BUCKET, whole)
    copied = max(held, *trained) if held < whole else held
    weight_bytes = sharding.weight_bytes
    if sharding.stage == 0:
        return 4 * (whole + (copied if sharding.world > 1 else 0))
    if sharding.stage == 1:
        return weight_bytes * (whole + held)
    late = sharding.grad_bytes * whole if sharding.once else 0
    if sharding.stage == 3:
        alone = (_reduced_alone(size, sharding) for size in trained if size > held)
        return late + max(2 * sharding.grad_bytes * held, *alone, 0)
    own = state_bytes(trained, (), sharding, "reduced", rank).gradients
    if sharding.once:
        return late + sharding.grad_bytes * copied + own * (sharding.mixed or held < whole)
    if sharding.mixed:
        return weight_bytes * (held + copied) + 4 * copied + own
    return weight_bytes * (held + copied) + own * ((held < whole) + sharding.accumulates)


def _reduced_alone(size: int, sharding: Sharding) -> int:
    """Under stage 3 of a weight that fits into no bucket: its gradient, a copy in fp32 if it is to be that, one that is
    padded to the ranks, and gloo's."""
    copies = 1 + (size % sharding.world > 0)
    return (sharding.weight_bytes + 4 * sharding.mixed + copies * sharding.grad_bytes) * size


def backward_bytes(trained: Sequence[int], sharding: Sharding, share: float, rank: int | None = None) -> int:
    """What gradients take beyond the states at rest while backward goes on and `share` of it is over.

    Before they are reduced, all at its end, there is one copy of them: b T, which under stage 2 is in the bucket. Under
    stage 3 they go to the bucket that it always has. If they do not fit into one bucket they are reduced on the way.
    Gradients of earlier micro-batches are there all the time, and under stages 0 and 1, or if all are reduced once,
    later ones are added to them.
    """
    whole, held = sum(trained), bucket(sum(trained), sharding)
    if not sharding.accumulates:
        earlier = 0
    else:
        kept, rest = (state_bytes(trained, (), sharding, at, rank) for at in ("accumulating", "rest"))
        earlier = kept.gradients - rest.gradients
    if sharding.once:
        return earlier
    if sharding.stage and held < whole and share:
        return max(earlier, reduction_bytes(trained, sharding, rank))
    if sharding.stage == 3 or (earlier and sharding.stage < 2):
        return earlier
    return earlier + int(share * sharding.weight_bytes * whole)


def update_bytes(trained: Sequence[int], sharding: Sharding, rank: int | None = None) -> int:
    """What a rank needs beyond its states at rest while the optimizer updates masters.

    Its gradients; under stages 1 to 3 a flat copy of them, g P, and 4 P in fp32 if they are bf16. Gradients in fp32
    beside bf16 are flat already under stage 2; there most is needed for the norm, a weight's gradient in fp64. With
    offloading there is room for all but those already.
    """
    if sharding.offload and not (sharding.mixed and sharding.stage == 2):
        return 0
    if sharding.stage == 0:
        return 4 * sum(trained)
    copies = sharding.grad_bytes + (4 if sharding.grad_bytes < 4 else 0)
    if sharding.stage == 3:
        return copies * shards(trained, sharding.world)
    part = partition(sum(trained), sharding.world)
    own = state_bytes(trained, (), sharding, "reduced", rank).gradients
    if not sharding.mixed:
        return own + copies * part
    if sharding.offload:
        return own
    parts = in_parts(trained, part, sharding.world)
    return own + 8 * max(parts[rank] if rank is not None else trained)
