"""Where states lie: on the device of a rank or, offloaded, in host memory, pinned if the device is a GPU.

DeepSpeed 0.19.8 moves with `engine.offload_optimizer` masters, moments and reduced gradients (of stages 1 and 2 all but
a buffer for one weight's gradient, of stage 3 all but the bucket), and with `engine.offload_params` the shards of
stage 3 but for those of weights that are always whole. torch rounds a pinned tensor up to a power of two, large ones
not as distft sets it (`process.devices.allocator_settings`). On a CPU both are the same memory, and only what
offloading adds counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distft.plan.states import (
    Sharding,
    in_parts,
    partition,
    persistence_threshold,
    shards,
    state_bytes,
)
from distft.process.devices import MOST_ROUNDED_MB

Terms = dict[str, int]


@dataclass(frozen=True)
class Placed:
    """Bytes by term, from the start of a run to its end. `host` is empty on a CPU."""

    device: Mapping[str, int]
    host: Mapping[str, int]


def placed(
    trained: Sequence[int], frozen: Sequence[int], sharding: Sharding, offload_params: bool, on_gpu: bool
) -> Placed:
    """Where a rank has its states.

    Args:
        trained, frozen: as of `state_bytes`.
        offload_params: weights are in host memory.
    """
    kept = state_bytes(trained, frozen, sharding, "rest")
    device: Terms = {"weights": kept.weights, "fp32 masters": kept.masters, "moments": kept.moments}
    device |= {"gradients": kept.gradients, "buckets": kept.buckets}
    host: Terms = {}
    if sharding.offload:
        own, through = _gradients(trained, sharding, on_gpu)
        masters = kept.masters if sharding.stage == 3 else _room(kept.masters, on_gpu)  # which stage 3 does not pin
        host = {"fp32 masters": masters, "moments": kept.moments, "gradients": own}
        device |= {"fp32 masters": 0, "moments": 0, "gradients": through}
        if sharding.stage != 3:
            host["updated weights"] = _room(sharding.weight_bytes * partition(sum(trained), sharding.world), on_gpu)
    if offload_params:
        device["weights"], host["weights"] = _offloaded_weights(trained, frozen, sharding, on_gpu)
    if on_gpu:
        return Placed(device, host)
    return Placed(dict(Counter(device) + Counter(host)), {})


def _gradients(trained: Sequence[int], sharding: Sharding, on_gpu: bool) -> tuple[int, int]:
    """Of an offloaded optimizer: bytes in host memory, and on the device."""
    if sharding.stage == 3:
        part = shards(trained, sharding.world)
        return _room(4 * part, on_gpu) + _room(sharding.grad_bytes * part, on_gpu), 0
    part, through = partition(sum(trained), sharding.world), sharding.weight_bytes * max(trained)
    host = _room(4 * part, on_gpu) + _room(through, on_gpu)
    if sharding.accumulates and sharding.stage == 2:
        if sharding.mixed:
            return host, through
        weights = in_parts(trained, part, sharding.world)
        host += max(sum(_room(sharding.grad_bytes * size, on_gpu) for size in sizes) for sizes in weights)
    return host, through


def _offloaded_weights(
    trained: Sequence[int], frozen: Sequence[int], sharding: Sharding, on_gpu: bool
) -> tuple[int, int]:
    """Bytes on the device, and in host memory: trained weights in one piece, frozen ones each by itself."""
    width, whole = sharding.weight_bytes, sum(trained) + sum(frozen)
    always = sum(size for size in (*trained, *frozen) if size <= persistence_threshold(whole))
    still = sum(_room(width * -(-size // sharding.world), on_gpu) for size in frozen)
    return width * always, _room(width * shards(trained, sharding.world), on_gpu) + still


def pinned(size: int) -> int:
    """Bytes that torch takes for a pinned tensor."""
    return size if size > MOST_ROUNDED_MB << 20 or not size else 1 << (size - 1).bit_length()


def _room(size: int, on_gpu: bool) -> int:
    return pinned(size) if on_gpu else size
