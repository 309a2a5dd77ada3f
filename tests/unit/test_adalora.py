"""Scores of singular values from pieces of any size, as from whole tensors."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.adalora import SENSITIVITY, UNCERTAINTY, part_of_scores, weights
from distft.engine.fragments import Fragment


@settings(deadline=None)
@given(
    rank=st.integers(1, 7),
    width=st.integers(1, 9),
    height=st.integers(1, 9),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_scores_do_not_depend_on_the_pieces(rank: int, width: int, height: int, seed: int, data: Any) -> None:
    """PEFT: the score of E, and the means of the scores of its row of A and its column of B."""
    shapes = {"m.lora_A.x": (rank, width), "m.lora_E.x": (rank, 1), "m.lora_B.x": (height, rank)}
    [weight] = weights(shapes)
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(rank, dtype=torch.float64)
    expected = torch.zeros(rank, dtype=torch.float64)
    for name, shape in shapes.items():
        sensitivity, uncertainty = (torch.rand(shape, generator=generator) for _ in range(2))
        score = sensitivity.double() * uncertainty.double()
        expected += score.mean(0) if name == weight.b else score.mean(1)
        numel = sensitivity.numel()
        cuts = sorted({0, numel, *data.draw(st.lists(st.integers(0, numel), max_size=4))})
        for begin, end in itertools.pairwise(cuts):
            tensors = {
                SENSITIVITY: sensitivity.view(-1)[begin:end],
                UNCERTAINTY: uncertainty.view(-1)[begin:end],
            }
            total += part_of_scores(weight, Fragment(name, begin, end - begin, tensors))
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)
