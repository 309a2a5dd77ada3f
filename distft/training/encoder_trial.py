"""Whether an encoder makes of documents in one row what it makes of each alone, tried before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from distft.data.records import Document
from distft.engine.deepspeed import Engine
from distft.process import distributed
from distft.process.distributed import Ranks
from distft.recipe.tasks import TaskName
from distft.tasks.multi_task import Multi, View
from distft.tasks.protocol import Learned
from distft.tasks.shared.boundaries import VARLEN
from distft.tasks.shared.flat_rows import end_of_encoder
from distft.tasks.shared.padding import Inputs, Reads

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest value
LEAK = {torch.float32: 1e-4, torch.bfloat16: 1e-3}  # what differs by rounding alone stays below
_SIZES = (5, 6, 1, 3, 5)  # tokens of documents, two of which are computed at once; the first may be longer


def inputs_of(task: Learned[Any]) -> dict[TaskName, Inputs]:
    """What makes the inputs of each task that reads texts by an encoder."""
    if isinstance(task, Multi):
        return {name: part.inputs for name, part in task.parts.items() if isinstance(part, Reads)}
    return {None: task.inputs} if isinstance(task, Reads) else {}


def leave_out(task: Learned[Any], leaves: bool) -> bool:
    """Have all that may leave out what their heads do not look at do so, or not. Returns whether there is any."""
    found = [inputs for inputs in inputs_of(task).values() if inputs.may_leave_out]
    for inputs in found:
        inputs.leaves_out = leaves
    return bool(found)


def is_right(task: Learned[Any], engine: Engine, other: str, reach: int, ranks: Ranks) -> bool:
    """Hidden states and outputs of documents in one row beside those of each alone, with another attention; and that no
    document changes another. Collective.

    Args:
        reach: tokens of a document in which the window of the model shows; 0: it has none.
    """
    wrapped: Any = engine.module
    whole = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    embeddings = whole.get_input_embeddings()
    vocabulary = getattr(embeddings, "base_layer", embeddings).num_embeddings
    engine.model.eval()
    found = inputs_of(task)
    right = bool(found) and all(inputs.flat for inputs in found.values())
    for name, inputs in found.items() if right else ():
        model = engine.model if name is None else View(engine.model, name)
        part = whole if name is None else model.module
        right = right and _agrees(inputs, model, part, whole, other, reach, vocabulary, ranks.device)
    engine.model.train()
    [wrong] = distributed.sum_over_ranks([float(not right)])
    return wrong == 0


def _agrees(
    inputs: Inputs, model: Any, part: Any, whole: Any, other: str, reach: int, vocabulary: int, device: torch.device
) -> bool:
    """Of one task. `model`: to be called; `part`: of transformers, below it; `whole`: of all tasks."""
    documents = _documents((max(_SIZES[0], reach), *_SIZES[1:]), vocabulary, 0)
    changed = [*_documents((max(_SIZES[0], reach),), vocabulary, 1), *documents[1:]]
    try:
        together = _outputs(inputs, model, part, documents, device)
        after = _outputs(inputs, model, part, changed, device)
        inputs.flat = False
        whole.set_attn_implementation(other)
        apart = [_outputs(inputs, model, part, [one], device)[0] for one in documents]
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):  # its code wants documents as rows
        return False
    finally:
        inputs.flat = True
        whole.set_attn_implementation(VARLEN)
    same = all(close(found, alone, TOLERANCE) for found, alone in zip(together, apart, strict=True))
    return same and all(close(one, two, LEAK) for one, two in zip(together[1:], after[1:], strict=True))


@torch.no_grad()
def _outputs(
    inputs: Inputs, model: Any, part: Any, documents: Sequence[Document], device: torch.device
) -> list[list[torch.Tensor]]:
    """Of each document: hidden states of its tokens, and what the head makes of it or of them."""
    batch = inputs.padded([[document] for document in documents], device)
    with _watched(part) as hidden:
        output: Mapping[str, Any] = model(**inputs(batch))
    longest = batch.input_ids.shape[1]
    found: list[list[torch.Tensor]] = [[] for _ in documents]
    for value in (*hidden, *output.values()):
        if not isinstance(value, torch.Tensor):
            continue
        for own, one, document in zip(found, value, documents, strict=True):
            size = 1 if inputs.leaves_out else document.size
            own.append(one[:size] if len(one) == longest else one)
    return found


@contextmanager
def _watched(part: Any) -> Iterator[list[torch.Tensor]]:
    """Hidden states of an encoder's end, in passes meanwhile."""
    found: list[torch.Tensor] = []

    def keep(module: Any, given: Any, output: Any) -> None:
        found.append(output if isinstance(output, torch.Tensor) else output[0])

    end = end_of_encoder(part)
    assert end is not None
    hook = end.register_forward_hook(keep)
    try:
        yield found
    finally:
        hook.remove()


def _documents(sizes: Sequence[int], vocabulary: int, seed: int) -> list[Document]:
    draw = np.random.default_rng(seed)
    found = []
    for size in sizes:
        types = (np.arange(size) > size // 2).astype(np.uint8)
        found.append(Document({"tokens": draw.integers(vocabulary, size=size).astype(np.int32), "types": types}, size))
    return found


def close(found: Sequence[torch.Tensor], others: Sequence[torch.Tensor], shares: Mapping[torch.dtype, float]) -> bool:
    """As far as rounding lets two ways agree."""
    for one, other in zip(found, others, strict=True):
        allowed = shares.get(one.dtype, 0.0) * (float(other.float().abs().max()) or 1.0)
        if one.shape != other.shape or not torch.allclose(one.float(), other.float(), rtol=0.0, atol=allowed):
            return False
    return True
