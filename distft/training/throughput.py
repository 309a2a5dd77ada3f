"""Throughput and memory: useful tokens per second, model FLOPs utilization, peak memory."""

from __future__ import annotations

import time

import psutil
import torch

# Dense bf16 peaks in FLOP/s, from the vendors' data sheets.
PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "H800": 989e12,
    "L40S": 362e12,
    "A10": 125e12,
}


class Meter:
    """Measures one step after another.

    Args:
        trainable, total: numbers of parameters; backward computes weight gradients for the first only.
        world: ranks, one device each.
    """

    def __init__(self, trainable: int, total: int, world: int, device: torch.device, dtype: str) -> None:
        # Kaplan et al. 2020 (arXiv:2001.08361): 2 FLOPs a parameter and token forward, the same again for the
        # gradients of activations and of trainable weights; attention's own products are left out.
        self._flops_per_token = 4.0 * total + 2.0 * trainable
        self._peak = peak_flops(device, dtype) * world
        self._device = device
        self._last = time.perf_counter()

    def restart(self) -> None:
        """What happened since the last step (a save, an evaluation) does not count as training time."""
        self._last = time.perf_counter()

    def step(self, useful_tokens: int) -> dict[str, float]:
        """Figures of the step that just ended, which took `useful_tokens` over all ranks."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        speed = useful_tokens / seconds
        figures = {"seconds": seconds, "useful_tokens_per_s": speed, "memory_bytes": float(self._memory())}
        if self._peak:
            figures["mfu"] = speed * self._flops_per_token / self._peak
        return figures

    def _memory(self) -> int:
        """Peak bytes on the GPU; resident bytes of the process on a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return int(psutil.Process().memory_info().rss)


def peak_flops(device: torch.device, dtype: str) -> float:
    """FLOP/s of one device; 0.0 where it is not known."""
    if device.type != "cuda" or dtype != "bf16":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in sorted(PEAK_BF16.items(), key=lambda kv: -len(kv[0])) if key in name), 0.0)
