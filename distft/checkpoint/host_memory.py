"""Host memory of the copies that are written while training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch

Named = tuple[str, torch.Tensor]


class HostMemory:
    """Room for host copies of tensors, in one piece, which the kernel hands out and pins in one go. It is kept from
    save to save. Copies may be made by another thread than the one that trains."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)

    def copy(self, tensors: Sequence[Named], stream: torch.cuda.Stream | None = None) -> list[Named]:
        """When this returns, the copies are made.

        Args:
            stream: on which tensors of a GPU are copied, beside what else it does; see `after_what_is_queued`.
        """
        needed = sum(_room_for(tensor) for _, tensor in tensors)
        with torch.cuda.stream(stream) if stream is not None else nullcontext():  # a new thread is on GPU 0
            if len(self._room) < needed:
                self._room = torch.empty(needed, dtype=torch.uint8, pin_memory=stream is not None)
            copied, start = [], 0
            for name, tensor in tensors:
                held = self._room[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                held.copy_(tensor.detach(), non_blocking=stream is not None)
                copied.append((name, held))
                start += _room_for(tensor)
        if stream is not None:
            stream.synchronize()
        return copied


def after_what_is_queued(tensors: Sequence[Named]) -> torch.cuda.Stream | None:
    """A stream of the tensors' GPU that begins when what the current one was given so far is done; None on a CPU."""
    device = next((tensor.device for _, tensor in tensors if tensor.is_cuda), None)
    if device is None:
        return None
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


def _room_for(tensor: torch.Tensor) -> int:
    """Bytes; each tensor begins where a line of the cache does."""
    return -(-tensor.nbytes // 64) * 64
