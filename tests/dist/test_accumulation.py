"""Gradients are added up in fp32 under bf16, over micro-batches and over ranks."""

from __future__ import annotations

import json
from pathlib import Path

from tests.dist.launch import run_ranks


def test_gradients_of_bf16_are_added_up_in_fp32(tmp_path: Path) -> None:
    """64 micro-batches on 2 ranks. The earlier way, which runs keep that were begun under it, shows what is at stake."""
    run_ranks("tests.dist.accumulation", 2, str(tmp_path / "errors.json"))
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert len(errors) == 8
    for name, error in errors.items():
        assert error < 1e-6 if name.startswith("fp32") else error > 3e-3, errors
