"""Memory by phase of a profiled step: the peak of this rank while it was in each."""

from __future__ import annotations

import threading

import psutil
import torch

from distft.run.profile import OTHER
from distft.training.memory import MemoryMeter

_EVERY_SECONDS = 0.005  # between two looks at a process on a CPU; what is shorter may be missed


class PhaseMemory:
    """Bytes allocated on a GPU, exactly; on a CPU those resident, by looks at the edges of phases and in between.

    Args:
        meter: learns of peaks on a GPU, which are counted anew in each phase.
    """

    def __init__(self, device: torch.device, meter: MemoryMeter) -> None:
        self.peaks: dict[str, int] = {}
        self._phase = OTHER
        self._device, self._meter = device, meter
        self._on_gpu = device.type == "cuda"
        self._process = psutil.Process()
        self._over = threading.Event()
        if self._on_gpu:
            self._meter.forget_after_noting()
        else:
            threading.Thread(target=self._watch, name="memory", daemon=True).start()

    def enter(self, phase: str) -> str:
        """Returns the phase that was left."""
        left = self._phase
        self._look()
        self._phase = phase
        if not self._on_gpu:
            self._look()
        return left

    def end(self) -> None:
        self._look()
        self._over.set()

    def _look(self) -> None:
        phase = self._phase
        found = self._meter.forget_after_noting() if self._on_gpu else int(self._process.memory_info().rss)
        self.peaks[phase] = max(found, self.peaks.get(phase, 0))

    def _watch(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            self._look()
