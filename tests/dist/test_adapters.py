"""A part of `make adapters` on the embedded sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import distft.sample
from tests.dist.launch import run_ranks
from tests.dist.recipe import RECIPE

MODULE = "tests.dist.adapters"
STEPS = "10"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    data = Path(distft.sample.__file__).with_name("conversations.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE.format(data=data, cache=folder / "cache"))
    return folder


def ranks(folder: Path, nproc: int, what: str, *options: str) -> None:
    run_ranks(MODULE, nproc, what, str(folder), str(folder / "recipe.yaml"), "--steps", STEPS, *options)


def test_adapters_equal_plain_loops(folder: Path) -> None:
    """AdaLoRA under ZeRO 0-3, and LoRA, rsLoRA, DoRA, LoRA+, modules_to_save, a part of the model under one: 2 ranks."""
    ranks(folder, 1, "reference")
    ranks(folder, 2, "equal", "--half")
    rows = json.loads((folder / "equal-2.json").read_text())
    assert len(rows) == 10
    assert {row["variant"]: row["worst"] for row in rows if row["worst"] >= 1e-5} == {}
    assert all(row["last_loss"] < row["first_loss"] for row in rows)
    assert all(row["allocations"] > 5 for row in rows if row["variant"] == "adalora")


def test_adalora_continues_bit_for_bit_in_every_phase(folder: Path) -> None:
    """Before tinit, at an allocation, at the last one, after it, each under another stage; fp32 and bf16."""
    ranks(folder, 2, "resume", "--half")


def test_weights_that_zero_3_keeps_whole_are_continued_too(folder: Path) -> None:
    ranks(folder, 2, "small")
