"""A part of `make exactness` on the embedded sample: small enough for every test run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import distft.sample
from tests.dist.exactness import RELAYOUT, same_samples
from tests.dist.launch import run_ranks
from tests.dist.recipe import RECIPE

MODULE = "tests.dist.exactness"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exactness")
    data = Path(distft.sample.__file__).with_name("conversations.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE.format(data=data, cache=folder / "cache"))
    run_ranks(MODULE, 1, "reference", str(folder), str(folder / "recipe.yaml"), "--steps", "12")
    return folder


def ranks(folder: Path, nproc: int, what: str, *options: str) -> None:
    run_ranks(MODULE, nproc, what, str(folder), str(folder / "recipe.yaml"), *options)


def test_equal_to_a_plain_loop(folder: Path) -> None:
    """Full and LoRA, packed and not, accumulation 1 and 4, ZeRO 0-3, on 2 ranks: half of the combinations."""
    ranks(folder, 2, "equal", "--steps", "12", "--half")
    rows = json.loads((folder / "equal-fp32-2.json").read_text())
    assert len(rows) == 16
    assert max(row["worst"] for row in rows) < 1e-5
    assert all(row["last_loss"] < row["first_loss"] for row in rows)


def test_options_do_not_change_the_result(folder: Path) -> None:
    ranks(folder, 2, "options", "--steps", "6", "--half")


def test_continued_equals_unbroken_bit_for_bit(folder: Path) -> None:
    """Full and LoRA, ZeRO 1-3, fp32 and bf16, with dropout, on 2 ranks: half of the combinations."""
    ranks(folder, 2, "resume", "--steps", "6", "--half")
    assert len(json.loads((folder / "resume-2.json").read_text())) == 6


def test_other_ranks_and_stages_read_the_same_state(folder: Path) -> None:
    """Written on 2 ranks under ZeRO 0-3, read on 1 rank under ZeRO 0-3, full, LoRA and AdaLoRA."""
    ranks(folder, 2, "write", "--steps", "4")
    ranks(folder, 1, "read", "--steps", "4", "--writers", "2")


def test_changing_ranks_feeds_the_same_samples(folder: Path) -> None:
    """2 ranks under ZeRO 3, then 1 under ZeRO 1, then 2 under ZeRO 0, against 1 unbroken: LoRA, AdaLoRA's pattern too."""
    for part, nproc, stage in ((0, 1, 2), (1, 2, 3), (2, 1, 1), (3, 2, 0)):
        ranks(folder, nproc, "relayout", "--steps", "12", "--part", str(part), "--stage", str(stage))
    for adapter in RELAYOUT:
        fed, apart = same_samples(folder, adapter)
        assert sorted(fed) == list(range(1, 13))
        assert apart < 1e-5
    pattern = json.loads((folder / "adalora-pieces.adapter.json").read_text())["pattern"]
    assert sum(map(sum, pattern.values())) == 3 * len(pattern) > 0
