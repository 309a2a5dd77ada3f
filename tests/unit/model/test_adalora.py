"""Scores of singular values from pieces of any size, as from whole tensors."""

from __future__ import annotations

import itertools
import json
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.engine.fragments import Fragment
from distft.errors import UserError
from distft.model import adalora
from distft.model.adalora import SENSITIVITY, UNCERTAINTY, RankAllocator, part_of_scores, weights
from distft.recipe.adapters import AdaLora


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


class NoTensors:
    """An engine in which every entry has score zero."""

    shapes: ClassVar = {
        f"{module}.lora_{letter}.x": shape
        for module in ("m", "n")
        for letter, shape in (("A", (3, 5)), ("E", (3, 1)), ("B", (4, 3)))
    }

    def __init__(self) -> None:
        self.masked: dict[str, list[bool]] = {}

    def keep(self, kinds: object, names: object) -> None:
        pass

    def owned_fragments(self) -> list[Fragment]:
        return []

    def mask(self, name: str, keep: torch.Tensor) -> None:
        self.masked[name] = keep.tolist()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> tuple[NoTensors, RankAllocator]:
    monkeypatch.setattr(adalora.distributed, "sum_over_ranks", list)
    engine: Any = NoTensors()
    return engine, RankAllocator(AdaLora(type="adalora", init_r=3, target_r=1), 10, 1.0, engine)


def test_equal_scores_leave_as_many_as_the_budget_says(alone: tuple[NoTensors, RankAllocator]) -> None:
    """Also where no step was taken, as after a batch that was passed over; and the pattern outlives a checkpoint."""
    engine, allocator = alone
    assert allocator.after_step(7, None) == {"ranks": {"m": 2, "n": 0}}  # 10 steps, the last three of them fixed
    assert engine.masked == {"m.lora_E.x": [True, True, False], "n.lora_E.x": [False, False, False]}
    again = RankAllocator(AdaLora(type="adalora", init_r=3, target_r=1), 10, 1.0, engine)  # type: ignore[arg-type]
    again.load(json.loads(json.dumps(allocator.state())))
    engine.masked.clear()
    assert again.after_step(8, None) == {}
    assert engine.masked["n.lora_E.x"] == [False, False, False]
    assert "2 of 6 ranks are left, 0 to 2 per weight" in str(again.verdict())


def test_a_run_whose_ranks_never_changed_says_so(alone: tuple[NoTensors, RankAllocator]) -> None:
    assert "no rank changed in 10 steps (tinit 1, tfinal 3, delta_t 1)" in str(alone[1].verdict())


@pytest.mark.parametrize("state", [{}, {"pattern": {"m": [True] * 3}}, {"pattern": {"m": [True] * 3, "n": [True] * 2}}])
def test_the_pattern_of_another_adapter_is_refused(
    alone: tuple[NoTensors, RankAllocator], state: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="another adapter"):
        alone[1].load(state)
