"""Out of memory, in one sentence: what was wanted, for what, the peak, what the plan expects, and which keys help."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from distft.errors import UserError
from distft.process import pulse
from distft.recipe.batch import AUTO
from distft.recipe.schema import Recipe
from distft.training import planned

GIB = 1 << 30
_TEXTS = ("out of memory", "DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
_WANTED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?(?:[KMG]i?B|bytes))")


@contextmanager
def explained(recipe: Recipe, batch: Any = None) -> Iterator[None]:
    """Raises UserError in place of the many errors that say that memory ran out within.

    Args:
        batch: what is worked on, with its tensors as attributes.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise UserError(sentence(error, recipe, batch)) from None


def ran_out(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text.lower() in str(error).lower() for text in _TEXTS)


def sentence(error: BaseException, recipe: Recipe, batch: Any) -> str:
    found = _WANTED.search(str(error))
    wanted = f": {found.group(1)} more were wanted" if found else ""
    shape = f", for a batch of {largest(batch)}" if batch is not None else ""
    expected, fitting = planned.advice(recipe)
    helps = ", ".join(remedies(recipe, in_a_batch=batch is not None))
    helps = f"what fits: {', or '.join(fitting)}" if fitting else f"what helps: {helps}"
    return (
        f"out of memory in {pulse.place() or 'the start'}{wanted}{shape}{peak()}{expected and ', '}{expected}; {helps} "
        "(a run with a checkpoint takes another engine as it is, and what begins with train, data or model with "
        "--allow KEY); `distft plan` says what the run takes, and what would fit"
    )


def peak() -> str:
    """What torch's allocator had at most; a CPU has none that counts."""
    if not torch.cuda.is_available():
        return ""
    try:
        most, (_, total) = torch.cuda.max_memory_allocated(), torch.cuda.mem_get_info()
    except RuntimeError:  # a GPU so full, of others too, that this process cannot even ask it
        return ""
    return f", the peak was {most / GIB:.1f} of {total / GIB:.1f} GiB"


def largest(batch: Any) -> str:
    """The largest tensor of a batch, with its name and shape."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    if not tensors:
        return "no tensors"
    name = max(tensors, key=lambda one: tensors[one].numel())
    return f"{' x '.join(map(str, tensors[name].shape))} {name}"


def remedies(recipe: Recipe, in_a_batch: bool) -> Iterator[str]:
    """Changes of a recipe that save memory, the cheapest first, where the plan cannot say which of them are enough.
    Only keys with which the run can go on."""
    train, engine = recipe.train, recipe.engine
    if in_a_batch and train.micro_batch != AUTO and train.micro_batch > 1:
        yield f"train.micro_batch={train.micro_batch // 2} (now {train.micro_batch})"
    if in_a_batch and (now := recipe.model.activation_checkpointing) != "full":
        yield "model.activation_checkpointing=full" + (f" (now {now})" if now == "selective" else "")
    if engine.zero_stage < 3:
        yield f"engine.zero_stage=3 (now {engine.zero_stage})"
    if not engine.offload_optimizer and engine.zero_stage > 0:
        yield "engine.offload_optimizer=true"
    if engine.zero_stage == 3 and not engine.offload_params:
        yield "engine.offload_params=true"
    yield "more GPUs"
    if in_a_batch:
        yield f"shorter rows (data.row_tokens, now {recipe.data.row_tokens})"
