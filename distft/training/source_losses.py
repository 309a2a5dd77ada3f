"""The losses of several sources in a step: sums on the device, which are read and added up with the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distft.tasks.protocol import Each, Learned, TellsEach


class SourceLosses:
    """Of this rank's micro-batches, for the sources of these names.

    Attributes:
        sums: float64 [sources, 2] on the device: losses of targets, and how many these are.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = names
        self.sums = torch.zeros(len(names), 2, dtype=torch.float64, device=device)

    def add(self, each: Each, sources: torch.Tensor) -> None:
        """Of a micro-batch. `sources`: int64 [documents], which each of its documents is from."""
        of = sources[each.owners]
        chosen = (of == torch.arange(len(self._names), device=of.device)[:, None]).double()
        losses = each.losses.double()
        self.sums += chosen @ torch.stack((losses, torch.ones_like(losses)), dim=1)  # in the same order each time

    def by_name(self, sums: Sequence[float]) -> dict[str, float]:
        """The numbers of `sums`, row by row, for ranks to add up."""
        keys = [f"source.{name}.{what}" for name in self._names for what in ("sum", "targets")]
        return dict(zip(keys, sums, strict=True))

    def means(self, sums: Mapping[str, float]) -> dict[str, float]:
        """From what `by_name` gives, added up: the loss per target of each source of which the step had any."""
        every = ((name, sums[f"source.{name}.sum"], sums[f"source.{name}.targets"]) for name in self._names)
        return {f"source.{name}.loss": total / targets for name, total, targets in every if targets}


def losses_of(
    task: Learned[Any], model: Any, batch: Any, found: SourceLosses | None, sources: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """The losses of a micro-batch, to the bit what the task's `loss` gives; those of its `sources` are added up."""
    if found is None or sources is None or not isinstance(task, TellsEach):
        return task.loss(model, batch)
    losses, each = task.loss_and_each(model, batch)
    found.add(each, sources)
    return losses
