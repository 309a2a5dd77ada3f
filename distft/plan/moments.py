"""Moments of a run on the device of one rank: bytes by term from the start through steps and evaluations to saves."""

from __future__ import annotations

from collections.abc import Iterator

from distft.plan import quantized
from distft.plan.case import Case
from distft.plan.prediction import EVALUATION, Moment
from distft.plan.process import own_bytes, process_bytes
from distft.plan.states import backward_bytes, reduction_bytes, state_bytes, update_bytes
from distft.plan.trained import embedding_of
from distft.recipe.adapters import AdaLora

MIB = 1 << 20
CONTEXT = 700 * MIB  # of a GPU: CUDA's context with the kernels of torch, cuBLAS's work space
COLLECTIVES = 500 * MIB  # NCCL's buffers for the channels of one communicator
FILE = "file of weights"  # the term of a file that is mapped
LOST = 0.03  # share of activations that the allocator cannot use, with growing segments

Terms = dict[str, int]


def moments(case: Case, rank: int | None = None) -> Iterator[Moment]:
    """Of the fullest rank, as if it were alone; or of one `rank`, without what its process shares with others."""
    base, process = _base(case), process_bytes if rank is None else own_bytes
    yield Moment("start", base if case.device else _start(case, rank))
    if case.device is None:  # copies are made at the first save, and kept for the next ones
        base |= {"process": process(case, "training"), "copies for checkpoints": copies(case, rank)}
    yield from _steps(case, base, rank)
    if any(part.eval for part in case.recipe.parts()):
        yield Moment(EVALUATION, _more(case, {**base, **_computing(case), **case.evaluation}, 0))
    if case.device is None:
        yield Moment("save", {**base, "process": process(case, "training" if rank else "end")})


def _steps(case: Case, base: Terms, rank: int | None) -> Iterator[Moment]:
    learned, sharding, computing = case.sizes[0], case.sharding, base | _computing(case)

    def backward(share: float) -> int:
        return case.sharded(lambda: backward_bytes(learned, sharding, share, rank), "backward", share, rank)

    for moment in case.activations.moments:
        if moment.name == "optimizer":
            continue
        share = 1.0 if case.device and moment.backward else moment.backward  # a GPU gives a bucket as a whole
        terms = {**computing, "activations": moment.size}
        yield Moment(moment.name, _more(case, terms, backward(share)))
    batch = {"activations": sum(case.activations.terms[name] for name in ("batch", "masks", "positions"))}
    if table := _tied(case):
        others = 0 if case.stage == 3 else backward(1 - table / sum(learned))
        gradients = others + 3 * sharding.weight_bytes * table
        looked_up = {"gathered weights": sharding.weight_bytes * table if case.stage == 3 and case.world > 1 else 0}
        yield Moment("embeddings", _more(case, {**computing, **batch, **looked_up}, gradients))
    reduced = case.sharded(lambda: reduction_bytes(learned, sharding, rank), "reduced", rank)
    yield Moment("reduction", _more(case, {**computing, **batch}, reduced))
    updated = case.sharded(lambda: update_bytes(learned, sharding, rank), "updated", rank)
    yield Moment("update", _more(case, {**base, **batch}, updated + _weighed(case)))


def _computing(case: Case) -> Terms:
    """Weights that are made whole to compute with."""
    width = case.sharding.weight_bytes
    terms = {"unpacked weight": case.sharded(lambda: quantized.unpacked(case.four_bit, width), "unpacked")}
    return terms | ({"gathered weights": gathered(case)} if case.stage == 3 else {})


def _tied(case: Case) -> int:
    """Elements of an embedding that is trained and is the head too: autograd has the gradients of both, the first and
    the last that it makes, and their sum, before any of it is reduced."""
    if not case.model.tied:
        return 0
    table = embedding_of(case.model)
    return table.size if case.update(table.name, table).whole else 0


def _weighed(case: Case) -> int:
    """AdaLoRA keeps a copy of its gradients, in fp32, until it has weighed them after the update."""
    if not isinstance(case.recipe.adapter, AdaLora):
        return 0
    learned = case.sizes[0]
    return 4 * sum(learned) // (1 if case.stage == 0 else case.world)


def copies(case: Case, rank: int | None = None) -> int:
    """Masters and moments of a rank, as they are copied to be written. Unsharded weights are dealt out to the ranks."""
    learned, world = case.sizes[0], case.world
    if case.stage == 0:
        own = case.sharded(lambda: [sum(learned[one::world]) for one in range(world)], "dealt out")
    else:
        own = [-(-sum(learned) // world)] * world
    return 4 * (1 + case.sharding.moments) * (max(own) if rank is None else own[rank])


def gathered(case: Case) -> int:
    """Whole weights of stage 3: those of the largest layer, or the largest one, of which gloo makes a copy while it
    gathers on a CPU, and those that are fetched before. A rank alone has all of them whole."""
    if case.world == 1:
        return 0
    layers = [sum(one.size for one in many.weights) for stack in case.model.stacks for many in stack.layers]
    prefetched = min(50_000_000, case.model.parameters // 100)
    largest = max((weight.size for weight, _ in case.model.weights()), default=0)
    return case.sharding.weight_bytes * (max([*layers, largest if case.device else 2 * largest]) + prefetched)


def _base(case: Case) -> Terms:
    """What is there from the start to the end."""
    terms: Terms = {}
    if case.device is not None:
        terms["CUDA"] = CONTEXT + (COLLECTIVES if case.world > 1 else 0)
    terms |= case.placed.device
    terms["weights"] -= case.sharded(lambda: quantized.saved(case.four_bit, case.sharding.weight_bytes), "saved")
    return {name: size for name, size in terms.items() if size}


def _start(case: Case, rank: int | None) -> Terms:
    """On a CPU, while the model is loaded: its file is mapped, and what is copied out of it.

    Weights in other numbers than the file's stand beside it; else the mapping is the weights, beside which those that
    are trained stand from stage 1 on. Under stage 3 rank 0 alone has the file, and all have shards. Tensors of experts
    are put together from those of each.
    """
    learned, width = sum(case.sizes[0]), case.sharding.weight_bytes
    file, loaded = case.file_width * case.model.parameters, width * case.model.parameters
    terms = {"process": (process_bytes if rank is None else own_bytes)(case, "loading")}
    terms["experts"] = width * max((one.size for one, _ in case.model.weights() if one.experts), default=0)
    if case.stage == 3:
        shards = state_bytes(*case.sizes, case.sharding, "rest").weights
        terms |= {FILE: 0 if rank else file, "weights": shards}
    elif width != case.file_width:
        terms |= {FILE: file, "weights": loaded}
    else:
        terms |= {"weights": loaded + (width * learned if case.stage else 0)}
    return {name: size for name, size in terms.items() if size}


def _more(case: Case, terms: Terms, gradients: int) -> Terms:
    """With more gradients, and what the allocator loses."""
    terms = {**terms, "gradients": terms.get("gradients", 0) + gradients}
    if case.device is not None:
        terms["lost by allocator"] = int(LOST * terms.get("activations", 0))
    return {name: size for name, size in terms.items() if size}
