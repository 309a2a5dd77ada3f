"""`engine.deterministic` asks torch for deterministic kernels, and names an operation that has none."""

from __future__ import annotations

import os

import pytest
import torch

from distft.errors import UserError
from distft.training import determinism
from tests.unit.recipes import recipe


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "")  # and as it was afterwards


def nondeterministic() -> None:
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))  # has no deterministic kernel on a CPU either


def test_an_operation_without_a_deterministic_kernel_is_named() -> None:
    asked = recipe(engine={"deterministic": True})
    refused = pytest.raises(UserError, match=r"^engine\.deterministic: put_ has no deterministic kernel")
    with refused, determinism.asked_for(asked):
        nondeterministic()
    assert not torch.are_deterministic_algorithms_enabled()


def test_without_the_key_nothing_is_asked_for() -> None:
    with determinism.asked_for(recipe()):
        assert not torch.are_deterministic_algorithms_enabled()
        nondeterministic()


def test_other_errors_stay_what_they_are() -> None:
    asked = determinism.asked_for(recipe(engine={"deterministic": True}))
    with pytest.raises(RuntimeError, match=r"^something else$"), asked:
        raise RuntimeError("something else")


def test_they_are_asked_for_within() -> None:
    with determinism.asked_for(recipe(engine={"deterministic": True})):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
