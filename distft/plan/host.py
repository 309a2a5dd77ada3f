"""Moments of host memory: of one rank whose device is a GPU, and of the export, whose processes come later.

The file of the base model is mapped. Its pages are shared by the ranks of a node and given back when others want them,
so they count only where a process needs them all at once.
"""

from __future__ import annotations

from collections.abc import Iterator

from distft.plan.case import Case
from distft.plan.moments import FILE, copies
from distft.plan.placement import pinned
from distft.plan.prediction import EXPORT, Moment
from distft.plan.process import IMPORTS, OWN, process_bytes
from distft.recipe.adapters import Layers

Terms = dict[str, int]
STRETCH = 1 << 22  # elements that an export reads at a time
PIECE = 256 << 20  # bytes that one of its processes writes at a time, at least


def host_moments(case: Case) -> Iterator[Moment]:
    """On a CPU the export alone: the rest is the ranks' own memory."""
    if case.device is not None:
        yield Moment("start", _there({"process": IMPORTS, "weights": _loaded(case)}))
        steps = {"process": process_bytes(case, "end"), **case.placed.host}
        yield Moment("steps", _there(steps))
        yield Moment("save", _there({**steps, "copies for checkpoints": pinned(copies(case))}))
    yield Moment(EXPORT, _there(_export(case)))


def _loaded(case: Case) -> int:
    """Weights that are made from the file's, before the engine moves them to the device. What is loaded straight into
    shards, or into 4 bits on the device, is never whole in host memory."""
    same = case.sharding.weight_bytes == case.file_width
    return 0 if same or case.stage == 3 or case.four_bit else case.sharding.weight_bytes * case.model.parameters


def _export(case: Case) -> Terms:
    """The weights of an adapter; of a whole model what each process that writes holds of it at a time."""
    if _is_loaded_whole(case):
        return _whole_export(case)
    process, width, trained = process_bytes(case, "end"), case.sharding.weight_bytes, case.sizes[0]
    if isinstance(case.recipe.adapter, Layers):
        return {"process": process, "trained weights": width * sum(trained), "pieces": _pieces(width)}
    writers = min(case.per_node, -(-width * case.model.parameters // PIECE))
    return {"process": process, "pieces": writers * (_pieces(width) + (OWN["loading"] if writers > 1 else 0))}


def _pieces(width: int) -> int:
    """A stretch of a weight as it is read, in fp32 from the checkpoint, and as it is written."""
    return (4 + 4 + width) * STRETCH


def _is_loaded_whole(case: Case) -> bool:
    """Where the model cannot be written a tensor at a time. Experts are fused when they are loaded; an adapter beside
    them is written without them."""
    fused = any(many.feed_forward.experts for stack in case.model.stacks for many in stack.layers)
    return len(case.recipe.parts()) > 1 or (fused and not isinstance(case.recipe.adapter, Layers))


def _whole_export(case: Case) -> Terms:
    """The base model in the run's numbers, unless nobody reads it as it is, and the checkpoint's trained weights."""
    width, elements = case.sharding.weight_bytes, case.model.parameters
    converted = width != case.file_width
    whole = not isinstance(case.recipe.adapter, Layers)
    return {
        "process": process_bytes(case, "end"),
        FILE: case.file_width * elements if converted else 0,
        "weights": width * elements if converted or whole else 0,
        "trained weights": 4 * sum(case.sizes[0]),
    }


def _there(terms: Terms) -> Terms:
    return {name: size for name, size in terms.items() if size}
