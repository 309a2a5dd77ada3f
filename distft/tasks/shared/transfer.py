"""Micro-batches on their way to a GPU: all tensors of one in one pinned buffer, one copy that nobody waits for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

ON_CPU = {"on_cpu": True}  # metadata of a field whose tensor stays where it is
_ALIGNED = 256  # bytes, as CUDA's own allocations


def moved(value: Any, device: torch.device) -> Any:
    """A copy of dataclasses, mappings and tensors within each other, with its tensors on `device`."""
    found = list(tensors_of(value))
    if not found:
        return value
    places, size = [], 0
    for tensor in found:
        places.append(size)
        size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    # torch reuses pinned memory when the copy from it is over
    buffer = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for tensor, place in zip(found, places, strict=True):
        of_buffer(buffer, place, tensor).copy_(tensor)
    there = buffer.to(device, non_blocking=True)
    return rebuilt(value, iter([of_buffer(there, place, one) for one, place in zip(found, places, strict=True)]))


def of_buffer(buffer: torch.Tensor, place: int, like: torch.Tensor) -> torch.Tensor:
    """The part of a buffer of bytes that has the dtype and shape of another tensor."""
    return buffer.narrow(0, place, like.nbytes).view(like.dtype).view(like.shape)


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_of(one)
    elif dataclasses.is_dataclass(value):
        for field in moving(value):
            yield from tensors_of(getattr(value, field))


def rebuilt(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """`value` with other tensors, in the order of `tensors_of`."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {key: rebuilt(one, tensors) for key, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{name: rebuilt(getattr(value, name), tensors) for name in moving(value)})
    return value


def moving(value: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(value) if not field.metadata.get("on_cpu")]
