"""Moments of a run on the device of one rank: bytes by term from the start through steps and evaluations to saves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from distft.plan import quantized
from distft.plan.case import Case
from distft.plan.prediction import EVALUATION, Moment
from distft.plan.states import States, reduction_bytes, state_bytes, update_bytes

MIB = 1 << 20
PROCESS = 345 * MIB  # of a rank on a CPU: what imports take
LIBRARIES = 61 * MIB  # that training and saving touch first
CONTEXT = 700 * MIB  # of a GPU: CUDA's context with the kernels of torch, cuBLAS's work space
COLLECTIVES = 500 * MIB  # NCCL's buffers for the channels of one communicator
LOST = 0.03  # share of activations that the allocator cannot use, with growing segments

Terms = dict[str, int]


def moments(case: Case) -> Iterator[Moment]:
    base, learned = _base(case), case.sizes[0]
    yield Moment("start", base if case.device else _start(case))
    if case.device is None:  # made at the first save, and kept for the next ones
        base |= {"process": PROCESS + LIBRARIES, "copies for checkpoints": copies(case)}
    unpacked = case.sharded(lambda: quantized.unpacked(case.four_bit, case.sharding.weight_bytes), "unpacked")
    one = {"unpacked weight": unpacked}
    reduced = case.sharded(lambda: reduction_bytes(learned, case.sharding), "reduced")
    for moment in case.activations.moments:
        if moment.name == "optimizer":
            continue
        gradients = int(reduced * moment.backward) if moment.backward else _accumulated(case)
        terms = {**base, **one, "activations": moment.size}
        yield Moment(moment.name, _more(case, terms, gradients))
    updated = case.sharded(lambda: update_bytes(learned, case.sharding), "updated")
    yield Moment("update", _more(case, base, updated))
    if any(part.eval is not None for part in case.recipe.parts()):
        yield Moment(EVALUATION, _more(case, {**base, **one, **case.evaluation}, 0))
    if case.device is None:
        yield Moment("save", base)


def copies(case: Case) -> int:
    """Masters and moments of the fullest rank, as they are copied to be written. Without sharding the weights are dealt
    out to the ranks."""
    learned, world = case.sizes[0], case.world
    if case.stage == 0:
        own = case.sharded(lambda: max(sum(learned[rank::world]) for rank in range(world)), "copied")
    else:
        own = -(-sum(learned) // world)
    return 4 * (1 + case.sharding.moments) * own


def gathered(case: Case) -> int:
    """Whole weights of stage 3: those of the largest layer, those that are fetched before, and the largest one."""
    layers = [sum(one.size for one in many.weights) for stack in case.model.stacks for many in stack.layers]
    prefetched = min(50_000_000, case.model.parameters // 100)
    largest = max((weight.size for weight, _ in case.model.weights()), default=0)
    return case.sharding.weight_bytes * (max([*layers, largest]) + prefetched)


def _base(case: Case) -> Terms:
    """What is there from the start to the end."""
    terms: Terms = {}
    if case.device is not None:
        terms["CUDA"] = CONTEXT + (COLLECTIVES if case.world > 1 else 0)
    terms |= case.placed.device
    terms["weights"] -= case.sharded(lambda: quantized.saved(case.four_bit, case.sharding.weight_bytes), "saved")
    if case.stage == 3:
        terms["gathered weights"] = gathered(case)
    return {name: size for name, size in terms.items() if size}


def _start(case: Case) -> Terms:
    """On a CPU, while the model is loaded: its file is mapped, and what is copied out of it.

    Weights in other numbers than the file's stand beside it, else those that are trained do from stage 1 on; under
    stage 3 shards.
    """
    learned, frozen = map(sum, case.sizes)
    width = case.sharding.weight_bytes
    copied = learned if case.stage in (1, 2) else 0
    if width != case.file_width:
        copied = learned + frozen
    loaded = _states(case, "rest").weights if case.stage == 3 else width * copied
    return {"process": PROCESS, "file of weights": case.file_width * (learned + frozen), "weights": loaded}


def _states(case: Case, at: Literal["rest", "accumulating"]) -> States:
    return case.sharded(lambda: state_bytes(*case.sizes, case.sharding, at), at)


def _accumulated(case: Case) -> int:
    """Gradients of earlier micro-batches, and a bucket that waits for the last one."""
    if not case.sharding.accumulates:
        return 0
    held, rest = _states(case, "accumulating"), _states(case, "rest")
    return max(0, held.gradients + held.buckets - rest.gradients - rest.buckets)


def _more(case: Case, terms: Terms, gradients: int) -> Terms:
    """With more gradients, and what the allocator loses."""
    terms = {**terms, "gradients": terms.get("gradients", 0) + gradients}
    if case.device is not None:
        terms["lost by allocator"] = int(LOST * terms.get("activations", 0))
    return {name: size for name, size in terms.items() if size}
