"""What the training loop asks of a task, and nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch

from distft.data.types import Document


class Batch(Protocol):
    """One micro-batch, ready for the model."""

    @property
    def useful_tokens(self) -> int:
        """Tokens that are not padding."""


B = TypeVar("B", bound=Batch)


class Task(Protocol[B]):
    """A loss is a sum and a count, by name. Counts are summed over the whole global batch before they divide,
    so packing, accumulation and the number of ranks do not change the mathematics."""

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> B:
        """A micro-batch from the documents of its rows. A row without documents is padding."""

    def counts(self, batch: B) -> dict[str, int]:
        """How many targets each loss sums over."""

    def loss(self, model: Any, batch: B) -> dict[str, torch.Tensor]:
        """Each loss as a SUM over its targets, scalar fp32; never a mean, never the model's own `.loss`."""
