"""Throughput: useful tokens per second, and model FLOPs utilization on GPUs whose peak is known."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch

from distft.plan.devices import peak_flops
from distft.recipe.tasks import TaskName
from distft.tasks.shared.lengths import Lengths
from distft.training.flops import Work


class Meter:
    """Measures one step after another.

    Args:
        works: what the model of each task does, see `flops.work_of`; None: it is not known.
        peak: FLOP/s of all devices together; None: they are not known.
    """

    def __init__(self, works: Mapping[TaskName, Work | None], peak: float | None) -> None:
        self._works, self._peak = works, peak
        self._last = time.perf_counter()

    def restart(self) -> None:
        """What happened since the last step (a save, an evaluation) does not count as training time."""
        self._last = time.perf_counter()

    def flops(self, batch: Any) -> float:
        """What a model needs for a batch of a task; NaN where that, or the peak, is not known."""
        work = self._works.get(getattr(batch, "part", None)) if self._peak is not None else None
        lengths: Lengths | None = getattr(batch, "lengths", None)
        return work.flops(lengths) if work is not None and lengths is not None else math.nan

    def step(self, useful_tokens: int, flops: float) -> dict[str, float]:
        """Figures of the step that just ended.

        Args:
            useful_tokens, flops: over all ranks.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        figures = {"seconds": seconds, "useful_tokens_per_s": useful_tokens / seconds}
        if self._peak is not None and not math.isnan(flops):
            figures["mfu"] = flops / seconds / self._peak
        return figures


def peak_of(device: torch.device, dtype: str) -> float | None:
    """FLOP/s of this rank's device; None where it is not known."""
    if device.type != "cuda" or dtype != "bf16":
        return None
    return peak_flops(torch.cuda.get_device_name(device))
