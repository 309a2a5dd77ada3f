"""Attention of documents in one row that holds all their scores, by few operations.

Through `torch.nn.functional` a document of 20 tokens takes 40 operations and their graph, which cost more than what
they compute. Where weights are dropped out, a CPU has no other kernel than these operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Run = tuple[int, int, int]  # tokens of a document and of what it looks at, and how many such stand side by side


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Sequence[Run],
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """softmax(scaling q k) v of documents, each of which looks at all that is its own: [T, heads, size] of query
    [T, heads, size], key and value [S, heads, size].

    Args:
        runs: in the order of the row.
        dropout: the share of weights that are left out.
    """
    found: torch.Tensor = _DenseAttention.apply(query, key, value, runs, scaling, dropout)  # type: ignore[no-untyped-call]
    return found


class _DenseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        runs: Sequence[Run],
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        heads, result = query.shape[1], torch.empty_like(query, memory_format=torch.contiguous_format)
        numbers = [heads * number * size * seen for size, seen, number in runs]
        kept = query.new_empty(sum(numbers)).bernoulli_(1 - dropout).div_(1 - dropout) if dropout else None
        weights, nothing = [], query.new_empty(1)
        looking, seen = _parts(runs, False, query, result), _parts(runs, True, key, value)
        for (q, out), (k, v), drawn in zip(looking, seen, _drawn(kept, numbers), strict=True):
            scores = torch.baddbmm(nothing, _batch(q), _batch(k).transpose(1, 2), beta=0, alpha=scaling)
            weight = torch.softmax(scores, 2, torch.float32).to(query.dtype)
            used = weight if drawn is None else weight * drawn.view_as(weight)
            _put(out, torch.bmm(used, _batch(v)))
            weights.append(weight)
        ctx.save_for_backward(query, key, value, *([] if kept is None else [kept]), *weights)
        ctx.runs, ctx.scaling, ctx.numbers = runs, scaling, numbers
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        query, key, value, *rest = ctx.saved_tensors
        weights, [kept] = rest[-len(ctx.runs) :], rest[: -len(ctx.runs)] or [None]
        found = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in (query, key, value)]
        nothing = query.new_empty(1)
        looking = _parts(ctx.runs, False, query, gradient, found[0])
        seen = _parts(ctx.runs, True, key, value, *found[1:])
        for (q, g, dq), (k, v, dk, dv), drawn, weight in zip(
            looking, seen, _drawn(kept, ctx.numbers), weights, strict=True
        ):
            own = _batch(g)
            used = weight if drawn is None else weight * drawn.view_as(weight)
            _put(dv, torch.bmm(used.transpose(1, 2), own))
            of_weight = torch.bmm(own, _batch(v).transpose(1, 2))
            if drawn is not None:
                of_weight.mul_(drawn.view_as(weight))
            of_scores = torch._softmax_backward_data(of_weight, weight, 2, weight.dtype)
            _put(dq, torch.baddbmm(nothing, of_scores, _batch(k), beta=0, alpha=ctx.scaling))
            _put(dk, torch.baddbmm(nothing, of_scores.transpose(1, 2), _batch(q), beta=0, alpha=ctx.scaling))
        return *found, None, None, None


def _parts(runs: Sequence[Run], seen: bool, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Of each run the views [number, size, heads, ...] into [T, heads, ...]. `seen`: of what is looked at."""
    sizes = [run[int(seen)] for run in runs]
    lengths = [size * number for size, (_, _, number) in zip(sizes, runs, strict=True)]
    split = zip(*(torch.split(tensor, lengths) for tensor in tensors), strict=True)
    return [
        tuple(one.view(-1, size, *one.shape[1:]) for one in parts) for parts, size in zip(split, sizes, strict=True)
    ]


def _drawn(kept: torch.Tensor | None, numbers: Sequence[int]) -> Sequence[torch.Tensor | None]:
    return [None] * len(numbers) if kept is None else torch.split(kept, list(numbers))


def _batch(part: torch.Tensor) -> torch.Tensor:
    """[number * heads, size, ...] of [number, size, heads, ...]; without a copy if there is one document."""
    return part[0].transpose(0, 1) if len(part) == 1 else part.transpose(1, 2).flatten(0, 1)


def _put(part: torch.Tensor, batch: torch.Tensor) -> None:
    """The other way round."""
    number, size, heads = part.shape[:3]
    part.transpose(1, 2).copy_(batch.view(number, heads, size, -1))
