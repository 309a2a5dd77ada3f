"""Memory that runs out is one sentence that says what helps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from distft.errors import UserError
from distft.process import pulse
from distft.recipe.load import load
from distft.recipe.schema import Recipe
from distft.training.out_of_memory import explained

RECIPE = "model: {path: x}\ndata: {train: x.jsonl}\ntrain: {steps: 3, global_batch: 8, micro_batch: 4}\n"


@dataclass
class Batch:
    tokens: torch.Tensor
    useful_tokens: int = 3


def recipe(folder: Path, *overrides: str) -> Recipe:
    (folder / "recipe.yaml").write_text(RECIPE)
    return load(folder / "recipe.yaml", list(overrides))


def allocate_too_much() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def test_a_batch_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse._pulse, "_place", b"step 3, a micro-batch")
    batch = Batch(torch.zeros(4, 512, dtype=torch.int64))
    with pytest.raises(UserError) as raised, explained(recipe(tmp_path), batch):
        allocate_too_much()
    assert str(raised.value).startswith(
        f"out of memory in step 3, a micro-batch: {1 << 60} bytes more were wanted, for a batch of 4 x 512 tokens; "
        "what helps: train.micro_batch=2 (now 4), model.activation_checkpointing=full, engine.zero_stage=3 (now 2), "
    )


def test_what_is_done_already_is_not_advised(tmp_path: Path) -> None:
    most = recipe(
        tmp_path,
        "train.micro_batch=1",
        "model.activation_checkpointing=true",
        "engine={zero_stage: 3, offload_optimizer: true, offload_params: true}",
    )
    with pytest.raises(UserError) as raised, explained(most):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ..."
        )
    said = str(raised.value)
    assert ": 2.50 GiB more were wanted; what helps: more GPUs (" in said
    assert "micro_batch" not in said


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA error: out of memory")])
def test_every_kind_counts(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(UserError, match="out of memory in"), explained(recipe(tmp_path)):
        raise error


def test_a_gpu_that_is_too_full_to_be_asked_is_a_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    with pytest.raises(UserError, match=r"^out of memory in .*; what helps: "), explained(recipe(tmp_path)):
        full()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape"), explained(recipe(tmp_path)):
        raise RuntimeError("shape mismatch")
