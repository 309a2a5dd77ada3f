"""A linear-chain CRF (Lafferty et al. 2001; for tagging: Lample et al. 2016, arXiv:1603.01360).

The score of tags y for emissions e of n positions is start[y1] + sum e[t, yt] + sum transitions[yt-1, yt] + end[yn],
and p(y) = exp(score) / sum of exp(score) over all y. Sums and maxima over paths are exact (forward-backward, Viterbi:
Rabiner 1989), in fp32 whatever the dtypes of parameters and emissions, with a loop over positions only.

    scores = constrained(crf(), allowed_transitions(labels))
    loss = -log_likelihood(scores, emissions, tags, mask).sum()
    paths = decode(scores, emissions, mask)

Everywhere: B rows of T >= 1 positions and L tags; emissions [B, T, L] of any floating dtype; mask bool [B, T], in each
row some True and then only False. What emissions and tags hold where the mask is False changes nothing, NaN included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

# The score in place of a forbidden one. Finite, for -inf minus -inf is NaN in a backward. A power of two so large that
# a multiple of it stays what it is when a score of less than 2**39 is added: fp32 then counts violations, exactly. One
# outweighs all emissions, and between paths that are all forbidden a difference is no rounding error.
FORBIDDEN = -(2.0**64)


@dataclass(frozen=True)
class Allowed:
    """Which tags may begin, end and follow each other: bool [L], [L] and [L, L] (from, to)."""

    start: torch.Tensor
    end: torch.Tensor
    transitions: torch.Tensor


class Scores(NamedTuple):  # a tuple, for in an output of another kind ZeRO-3's backward hooks find no tensors
    """fp32 [L], [L] and [L, L] (from, to)."""

    start: torch.Tensor
    end: torch.Tensor
    transitions: torch.Tensor


class CRF(torch.nn.Module):
    """The parameters; what is computed with them are functions of this module.

    They are zero at first, where every tag is independent of the others. Under ZeRO-3 parameters are whole in `forward`
    only, hence it gives copies.
    """

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.start = torch.nn.Parameter(torch.zeros(tags))
        self.end = torch.nn.Parameter(torch.zeros(tags))
        self.transitions = torch.nn.Parameter(torch.zeros(tags, tags))

    def forward(self) -> Scores:
        return Scores(*(p.to(torch.float32, copy=True) for p in (self.start, self.end, self.transitions)))


def constrained(scores: Scores, allowed: Allowed | None) -> Scores:
    """Scores in which what is not allowed has FORBIDDEN, and no gradient; None allows everything."""
    if allowed is None:
        return scores
    pairs = zip(scores, (allowed.start, allowed.end, allowed.transitions), strict=True)
    return Scores(*(torch.where(permitted.to(score.device), score, FORBIDDEN) for score, permitted in pairs))


def log_likelihood(scores: Scores, emissions: torch.Tensor, tags: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log p(tags | emissions), fp32 [B]; 0.0 without a gradient where a row's mask is all False.

    Args:
        tags: int64 [B, T].

    Tags that the constraints forbid get FORBIDDEN for every violation (less those that no path avoids). That is finite;
    its gradient is that of any other tags: observed minus expected counts, in the emissions at most 1.
    """
    relative, _ = _relative(emissions, mask)
    difference = _score(scores, relative, tags, mask) - _total(scores, relative, mask)
    return torch.where(mask[:, 0], difference, 0.0)


def log_partition(scores: Scores, emissions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log of the sum of exp(score) over all paths, fp32 [B]; 0.0 where a row's mask is all False."""
    relative, highest = _relative(emissions, mask)
    return torch.where(mask[:, 0], _total(scores, relative, mask) + highest.sum(1), 0.0)


def marginals(scores: Scores, emissions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """p(tag at t | emissions), fp32 [B, T, L]; zero where the mask is False."""
    relative, _ = _relative(emissions, mask)
    steps, real = relative.unbind(1), mask[..., None].unbind(1)
    after = [scores.end.expand_as(steps[0])]  # from the last position on: log of the sum over all that can follow
    for emission, exists in zip(steps[:0:-1], real[:0:-1], strict=True):
        leaving = _log_sum_exp(scores.transitions + (emission + after[-1])[:, None, :], 2)
        after.append(torch.where(exists, leaving, scores.end))
    before = _prefixes(scores, relative, mask)
    logits = torch.stack(before, 1) + torch.stack(after[::-1], 1)
    return torch.softmax(logits, 2) * mask[..., None]


@torch.no_grad()
def decode(scores: Scores, emissions: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """The best tags of each row, as many as its mask has True.

    Of equal paths the one with the lowest last tag, then the lowest before it, and so on. A path has a forbidden
    transition only where all have; it is then one with the fewest.
    """
    relative, _ = _relative(emissions, mask)
    steps, real = relative.unbind(1), mask[..., None].unbind(1)
    best, pointers = scores.start + steps[0], []
    stay = torch.arange(best.shape[1], device=best.device)
    for emission, exists in zip(steps[1:], real[1:], strict=True):
        arriving, pointer = (best[:, :, None] + scores.transitions).max(1)  # of equal ones max gives the first
        best = torch.where(exists, arriving + emission, best)
        pointers.append(torch.where(exists, pointer, stay))
    path = [(best + scores.end).argmax(1)]
    for pointer in reversed(pointers):
        path.append(_pick(pointer, path[-1]))
    rows: list[list[int]] = torch.stack(path[::-1], 1).tolist()
    return [row[:length] for row, length in zip(rows, mask.sum(1).tolist(), strict=True)]


def allowed_transitions(labels: Sequence[str]) -> Allowed:
    """The constraints of the scheme that the labels are written in; tag i is labels[i].

    B-X, I-X and O are IOB2 (Tjong Kim Sang and Veenstra 1999): I-X comes after B-X or I-X. With E- and S-, or L- and U-
    (BIOES; BILOU, Ratinov and Roth 2009), whatever B-X opens goes on with I-X and ends with E-X. Types may be left out
    (B, I, O). Labels of no scheme have no constraints; nor have those that could not all occur in one, such as I-X
    without B-X: they come from data in another.
    """
    parts = [("O", "") if label == "O" else label.partition("-")[::2] for label in labels]
    opened, closed = ({kind for prefix, kind in parts if prefix in marks} for marks in (("B",), ("E", "L")))
    needs = [kind if prefix in ("I", "E", "L") else None for prefix, kind in parts]  # the type that must be open before
    leaves = [kind if prefix in ("B", "I") else None for prefix, kind in parts]  # the type that is open after
    prefixes = {prefix for prefix, _ in parts}
    must_close = bool(prefixes & set("ESLU"))
    known = prefixes <= set("OBIES") or prefixes <= set("OBILU")
    if not known or not opened.issuperset(set(needs) - {None}) or (must_close and not opened <= closed):
        return Allowed(*(torch.ones(shape, dtype=torch.bool) for shape in [(len(labels),)] * 2 + [(len(labels),) * 2]))
    return Allowed(
        start=torch.tensor([need is None for need in needs]),
        end=torch.tensor([not must_close or left is None for left in leaves]),
        transitions=torch.tensor(
            [[need == left or (need is None and not must_close) for need in needs] for left in leaves]
        ),
    )


def _relative(emissions: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Emissions less the highest of their position, fp32 [B, T, L], and the highest [B, T]; zeros at padding.

    What is taken from all tags of a position changes no probability, and sums over long rows stay small: precise.
    """
    known = emissions.float().masked_fill(~mask[..., None], 0.0)
    highest = known.detach().amax(2)
    return known - highest[..., None], highest


def _score(scores: Scores, emissions: torch.Tensor, tags: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The score of the tags, [B]."""
    tags = tags.masked_fill(~mask, 0)
    start = scores.start.expand_as(emissions[:, :1])
    # not transitions[...]: the backward of an index may add up in any order, that of an embedding does not
    follow = functional.embedding(tags[:, :-1], scores.transitions)
    chosen = _pick(torch.cat([start, follow], 1) + emissions, tags) * mask
    last = _pick(tags, (mask.sum(1) - 1).clamp_min(0))
    return chosen.sum(1) + _pick(scores.end.expand_as(emissions[:, 0]), last)


def _total(scores: Scores, emissions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log of the sum of exp(score) over all paths, [B]."""
    return _log_sum_exp(_prefixes(scores, emissions, mask)[-1] + scores.end, 1)


def _prefixes(scores: Scores, emissions: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Of each position the log of the sum over all paths up to it, by its tag: T times [B, L].

    At padding it is that of the last position before it.
    """
    steps, real = emissions.unbind(1), mask[..., None].unbind(1)
    sums = [scores.start + steps[0]]
    for emission, exists in zip(steps[1:], real[1:], strict=True):
        arriving = _log_sum_exp(sums[-1][:, :, None] + scores.transitions, 1) + emission
        sums.append(torch.where(exists, arriving, sums[-1]))
    return sums


def _log_sum_exp(values: torch.Tensor, dim: int) -> torch.Tensor:
    """As torch.logsumexp, but the gradient's weights sum to one at any magnitude.

    Torch has exp(value - result) for them; where log n is lost beside multiples of FORBIDDEN each of n equal weights
    is 1, and a gradient grows n-fold a step.
    """
    highest = values.detach().amax(dim, keepdim=True)
    return (values - highest).exp().sum(dim).log() + highest.squeeze(dim)


def _pick(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values[..., index] with an index of each row: [..., L] and [...] to [...]."""
    return values.gather(-1, index[..., None]).squeeze(-1)
