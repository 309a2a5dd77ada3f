"""Host memory of the copies that are written while training goes on."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

Named = tuple[str, torch.Tensor]


@dataclass(frozen=True)
class Copies:
    """Copies of flat fp32 tensors by name, side by side in `whole`, fp32 too."""

    tensors: list[Named]
    whole: torch.Tensor


class HostMemory:
    """Room for host copies of tensors, in one piece, which the kernel hands out and pins in one go. It is kept from
    save to save. Copies may be made by another thread than the one that trains: all in one call, since Python's lock is
    what that one needs."""

    def __init__(self) -> None:
        self._room = torch.empty(0)

    def copy(self, tensors: Sequence[Named], stream: torch.cuda.Stream | None = None) -> Copies:
        """When this returns, the copies are made.

        Args:
            tensors: fp32, [numel] each.
            stream: on which tensors of a GPU are copied, beside what else it does; see `after_what_is_queued`.
        """
        sizes = [tensor.numel() for _, tensor in tensors]
        with torch.cuda.stream(stream) if stream is not None else nullcontext():  # a new thread is on GPU 0
            if len(self._room) < sum(sizes):
                self._room = _new_room(sum(sizes), pinned=stream is not None)
            whole = self._room[: sum(sizes)]
            held = list(torch.split(whole, sizes))
            with torch.no_grad():
                torch._foreach_copy_(held, [tensor for _, tensor in tensors], non_blocking=stream is not None)
        if stream is not None:
            stream.synchronize()
        return Copies([(name, copy) for (name, _), copy in zip(tensors, held, strict=True)], whole)


def _new_room(numel: int, pinned: bool) -> torch.Tensor:
    """fp32 [numel]. Not by torch's allocator on a CPU: for huge pages the kernel may move others about, seconds per
    gigabyte, while training waits for its first save."""
    if pinned:
        return torch.empty(numel, pin_memory=True)
    return torch.frombuffer(mmap.mmap(-1, 4 * numel), dtype=torch.float32)


def after_what_is_queued(tensors: Iterable[torch.Tensor]) -> torch.cuda.Stream | None:
    """A stream of the tensors' GPU that begins when what the current one was given so far is done; None on a CPU. All
    tensors are on one device: only the first is looked at."""
    first = next(iter(tensors), None)
    if first is None or not first.is_cuda:
        return None
    device = first.device
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream
