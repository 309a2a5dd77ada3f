"""Host memory of the copies that are written while training goes on."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

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
        self._pinned = False

    def copy(self, tensors: Sequence[Named], stream: torch.cuda.Stream | None = None) -> Copies:
        """When this returns, the copies are made.

        Args:
            tensors: fp32, [numel] each.
            stream: on which tensors of a GPU are copied, beside what else it does; see `after_what_is_queued`.
        """
        sizes = [tensor.numel() for _, tensor in tensors]
        with torch.cuda.stream(stream) if stream is not None else nullcontext():  # a new thread is on GPU 0
            if len(self._room) < sum(sizes):
                self._grow(sum(sizes), pinned=stream is not None)
            whole = self._room[: sum(sizes)]
            held = list(torch.split(whole, sizes))
            with torch.no_grad():
                torch._foreach_copy_(held, [tensor for _, tensor in tensors], non_blocking=stream is not None)
        if stream is not None:
            stream.synchronize()
        return Copies([(name, copy) for (name, _), copy in zip(tensors, held, strict=True)], whole)

    def _grow(self, numel: int, pinned: bool) -> None:
        if self._pinned:
            _unpin(self._room)
        self._room, self._pinned = _new_room(numel), pinned
        if pinned:
            _pin(self._room)


def _new_room(numel: int) -> torch.Tensor:
    """fp32 [numel], at least one. Not by torch's allocators: for huge pages on a CPU the kernel may move others about,
    seconds per gigabyte, while training waits for its first save; and that of pinned memory takes the next power of two
    bytes, 34.4 GB for 26.5."""
    return torch.frombuffer(mmap.mmap(-1, 4 * max(1, numel)), dtype=torch.float32)


def _pin(room: torch.Tensor) -> None:
    """Have the GPU copy into this memory by itself. Not run on a GPU yet: the machines that this was written on have
    none. Raises torch.cuda.CudaError."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(int(runtime.cudaHostRegister(room.data_ptr(), room.nbytes, 0)))


def _unpin(room: torch.Tensor) -> None:
    """Before it is given back."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(int(runtime.cudaHostUnregister(room.data_ptr())))


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
