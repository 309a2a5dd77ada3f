"""Every task beside a plain loop, and broken beside unbroken, on the embedded samples: 2 ranks."""

from __future__ import annotations

import json
from pathlib import Path

from tests.dist.launch import run_ranks
from tests.dist.tasks import TASKS

MODULE = "tests.dist.tasks"


def test_tasks_equal_plain_loops(tmp_path: Path) -> None:
    """Full and LoRA, fp32, each under one ZeRO stage; each stage comes with both."""
    run_ranks(MODULE, 2, "equal", str(tmp_path), "--half")
    rows = json.loads((tmp_path / "equal-2.json").read_text())
    assert {row["task"] for row in rows} == set(TASKS)
    assert {(row["adapter"], row["stage"]) for row in rows} == {(a, s) for a in ("full", "lora") for s in range(4)}
    assert {f"{row['task']} {row['adapter']} {row['stage']}": row["gap"] for row in rows if row["gap"] >= 1e-5} == {}


def test_tasks_continue_bit_for_bit(tmp_path: Path) -> None:
    """With dropout: full or LoRA, each under a ZeRO stage, in fp32 or bf16."""
    run_ranks(MODULE, 2, "resume", str(tmp_path), "--half")
