"""Memory of the ranks: this rank's peak in each step, and that of the worst one now and then."""

from __future__ import annotations

import resource
import struct
from collections.abc import Sequence

import psutil
import torch

from distft.process import distributed

EVERY = 20  # steps; then the ranks compare, a collective of a few bytes each
_FIGURES = struct.Struct("<QQ")  # allocated, reserved; on a CPU resident after a step, and the most so far


class MemoryMeter:
    """Peaks of one rank: bytes on its GPU, or resident bytes of the process on a CPU: after steps, and the most ever.

    Between two comparisons it watches an interval of steps, so that what was needed long ago does not hide a growth.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._most = self._allocated = self._reserved = 0
        self._since = 0  # comparisons are due after the first step of an attempt, and after each EVERY-th of a run

    def step(self) -> dict[str, float]:
        """This rank's figures after a step: `memory_bytes`, the peak so far."""
        allocated = self._note()
        return {"memory_bytes": float(self._most if self._device.type == "cuda" else allocated)}

    def forget_after_noting(self) -> int:
        """Begin to count the peak on a GPU anew; what it was so far is noted. Returns bytes allocated at most."""
        allocated = self._note()
        torch.cuda.reset_peak_memory_stats(self._device)
        return allocated

    def compare(self, step: int, last: bool) -> dict[str, float]:
        """The peaks of the worst rank since the last comparison; nothing if none is due. Collective if one is.

        Args:
            step, last: of the run, the same on all ranks.
        """
        first, self._since = self._since == 0, self._since + 1
        if not (first or last or step % EVERY == 0):
            return {}
        mine = _FIGURES.pack(self._allocated, self._reserved)
        found = [_FIGURES.unpack(one) for one in distributed.gather_bytes(mine)]
        self._allocated = self._reserved = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        return worst(found, reserved=self._device.type == "cuda")

    def _note(self) -> int:
        allocated, reserved = self._peaks()
        self._allocated, self._reserved = max(self._allocated, allocated), max(self._reserved, reserved)
        self._most = max(self._most, allocated)
        return allocated

    def _peaks(self) -> tuple[int, int]:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device), torch.cuda.max_memory_reserved(self._device)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # KiB, as Linux has it
        return int(psutil.Process().memory_info().rss), most


def worst(found: Sequence[tuple[int, ...]], reserved: bool) -> dict[str, float]:
    """The most of all ranks, from the two figures of each, and the rank that is nearest to running out: the one with
    the most reserved bytes, or on a CPU with the most resident ones."""
    rank = max(range(len(found)), key=lambda number: found[number][1 if reserved else 0])
    figures = {"worst_memory_bytes": float(max(one[0] for one in found)), "worst_memory_rank": rank}
    if reserved:
        return {**figures, "worst_memory_reserved_bytes": float(found[rank][1])}
    return {**figures, "worst_memory_peak_bytes": float(max(one[1] for one in found))}
