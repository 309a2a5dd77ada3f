"""The AdaLoRA rank schedule by step: plain arithmetic, so a bad recipe is refused before the run starts."""

from __future__ import annotations

from dataclasses import dataclass

from distft.recipe.adapters import AdaLora


@dataclass(frozen=True)
class Phases:
    """The phases of a run: all ranks, fewer and fewer, and the last steps in which the pattern is fixed.

    Steps are counted from 1. Ranks are given out anew after each step at which `allocates` says so.
    """

    total: int
    tinit: int
    tfinal: int
    delta_t: int

    @property
    def fixed_at(self) -> int:
        """The step after which the pattern is fixed."""
        return self.total - self.tfinal

    def allocates(self, step: int) -> bool:
        return step == self.fixed_at or (self.tinit < step < self.fixed_at and step % self.delta_t == 0)

    def budget(self, step: int, initial: int, target: int) -> int:
        """Ranks over all weights after `step`: a cubic descent (Zhang et al. 2023, arXiv:2303.10512, equation 12).

        Args:
            initial, target: ranks over all weights in the beginning and in the end.
        """
        if step <= self.tinit:
            return initial
        if step >= self.fixed_at:
            return target
        left = 1 - (step - self.tinit) / (self.fixed_at - self.tinit)
        return int((initial - target) * left**3 + target)


def plan_phases(adapter: AdaLora, total: int) -> Phases:
    """The phases of a run of `total` optimizer steps, as far as the recipe does not give them.

    Raises:
        ValueError: they leave no step in which ranks could change; the message shows the sum.
    """
    tinit = adapter.tinit if adapter.tinit is not None else total // 10
    tfinal = adapter.tfinal if adapter.tfinal is not None else total * 3 // 10
    between = total - tinit - tfinal
    if between < 1:
        raise ValueError(
            f"tinit {tinit} + tfinal {tfinal} = {tinit + tfinal} leaves none of the {total} steps to change ranks; "
            "make them shorter, or the run longer"
        )
    return Phases(total, tinit, tfinal, adapter.delta_t or max(1, min(10, between // 10)))
