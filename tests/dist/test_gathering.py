"""Weights that ranks hold together: what is computed with them, by ranks that do not do the same."""

from __future__ import annotations

from tests.dist.launch import run_ranks


def test_ranks_with_other_work_compute_with_whole_weights() -> None:
    run_ranks("tests.dist.gathering", 2, timeout=120.0)
