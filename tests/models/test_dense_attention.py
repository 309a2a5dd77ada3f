"""Attention by few operations beside the same by torch's graph, document by document."""

from __future__ import annotations

import pytest
import torch

from distft.model.dense_attention import Run, attend

HEADS, SIZE, SCALE = 3, 8, 0.3
RUNS: list[Run] = [(5, 5, 1), (4, 4, 3), (1, 1, 2), (9, 9, 1)]
PAIRS: list[Run] = [(5, 2, 1), (4, 7, 3), (1, 9, 2)]


def plainly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: list[Run], kept: torch.Tensor) -> torch.Tensor:
    found, at, seen_at, drawn_at = [], 0, 0, 0
    for size, seen, number in runs:
        drawn = kept[drawn_at : drawn_at + number * HEADS * size * seen].view(number, HEADS, size, seen)
        drawn_at += drawn.numel()
        for one in range(number):
            mine = q[at : at + size].transpose(0, 1)
            keys, values = (tensor[seen_at : seen_at + seen].transpose(0, 1) for tensor in (k, v))
            weights = torch.softmax(SCALE * mine @ keys.transpose(1, 2), 2) * drawn[one]
            found.append((weights @ values).transpose(0, 1))
            at, seen_at = at + size, seen_at + seen
    return torch.cat(found)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("runs", [RUNS, PAIRS])
def test_results_and_gradients_are_those_of_each_document_alone(runs: list[Run], dropout: float) -> None:
    torch.manual_seed(0)
    tokens, seen = (sum(run[of] * run[2] for run in runs) for of in (0, 1))
    given = [torch.randn(HEADS, length, SIZE, requires_grad=True) for length in (tokens, seen, seen)]
    q, k, v = (tensor.transpose(0, 1) for tensor in given)  # as layers hand them over
    upstream = torch.randn(tokens, HEADS, SIZE)
    torch.manual_seed(1)
    ours = attend(q, k, v, runs, SCALE, dropout)
    torch.manual_seed(1)
    number = sum(HEADS * one * other * times for one, other, times in runs)
    kept = torch.empty(number).bernoulli_(1 - dropout) / (1 - dropout)
    theirs = plainly(q, k, v, runs, kept)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert dropout == 0 or bool((kept == 0).any())
    for mine, other in zip(*(torch.autograd.grad(one, given, upstream) for one in (ours, theirs)), strict=True):
        assert torch.allclose(mine, other, atol=2e-6)


def test_bf16_has_its_weights_in_fp32() -> None:
    torch.manual_seed(0)
    given = [torch.randn(sum(size * number for size, _, number in RUNS), HEADS, SIZE) for _ in range(3)]
    exact = attend(*given, RUNS, SCALE, 0.0)
    found = attend(*(tensor.bfloat16() for tensor in given), RUNS, SCALE, 0.0)
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), exact, atol=0.03)
