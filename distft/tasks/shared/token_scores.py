"""Loss, accuracy and perplexity of language models, causal and masked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from distft.metrics.scores import Report
from distft.tasks.protocol import Outcome

_KEYS = ("loss", "right", "targets")
_MOST = 700.0  # nats; exp of more is no float


def scores_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """fp32 [2, N]: the loss of each target, and 1 where it is the likeliest token. `logits`: fp32 [N, vocabulary]."""
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return torch.stack((losses, (logits.argmax(-1) == targets).float()))


def sum_and_each(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the losses, and each of them without gradients, fp32 [N]. `logits`: fp32 [N, vocabulary]."""
    each = functional.cross_entropy(logits.detach(), targets, reduction="none")
    return functional.cross_entropy(logits, targets, reduction="sum"), each


def score_tokens(scores: torch.Tensor, owners: torch.Tensor, documents: int) -> list[Outcome]:
    """One outcome a document.

    Args:
        scores: as `scores_of` makes them; owners: int64 [N], the document a target is of.
    """
    losses, right = scores.double()
    sums = torch.zeros(3, max(1, documents), dtype=torch.float64, device=scores.device)
    for total, values in zip(sums, (losses, right, torch.ones_like(right)), strict=True):
        total.index_add_(0, owners, values)
    return [
        {"loss": loss, "right": int(good), "targets": int(count)} for loss, good, count in sums.T.tolist()[:documents]
    ]


def add_outcomes(parts: Sequence[Outcome]) -> Outcome:
    """The outcome of a text from those of its pieces."""
    return {key: sum(part[key] for part in parts) for key in _KEYS}


def perplexity(loss: float, targets: int) -> float:
    return math.exp(min(loss / max(1, targets), _MOST))


def report_token_scores(outcomes: Sequence[Outcome]) -> Report:
    targets = sum(outcome["targets"] for outcome in outcomes)
    if not targets:
        return Report({})
    loss = math.fsum(outcome["loss"] for outcome in outcomes)
    right = sum(outcome["right"] for outcome in outcomes)
    return Report({"perplexity": perplexity(loss, targets), "accuracy": right / targets})
