"""A chunk of logits at a time against all of them under DeepSpeed, on 2 ranks: trained, tied and frozen heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.dist.chunks import STEPS, WAYS
from tests.dist.launch import run_ranks


@pytest.mark.long
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_losses_are_those_of_all_logits(tmp_path: Path, stage: int) -> None:
    run_ranks("tests.dist.chunks", 2, str(tmp_path), str(stage))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["way"] for row in rows] == list(WAYS)
    assert {row["way"]: row["gap"] for row in rows if row["gap"] > 1e-5} == {}
    assert all(len(row["ours"]) == 2 * STEPS + 2 and len(set(row["ours"])) > 2 * STEPS for row in rows)
