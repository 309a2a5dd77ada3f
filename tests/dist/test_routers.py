"""The balance loss of a mixture of experts beside a plain loop: packed rows, accumulation, ZeRO 0 to 3, 1 and 2 ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.dist.launch import run_ranks


@pytest.mark.long
@pytest.mark.parametrize("world", [1, 2])
def test_it_equals_a_plain_loop(tmp_path: Path, world: int) -> None:
    run_ranks("tests.dist.routers", world, str(tmp_path))
    rows = json.loads((tmp_path / f"routers-{world}.json").read_text())
    assert [row["stage"] for row in rows] == [0, 1, 2, 3, 3]
    assert {f"ZeRO {row['stage']}, {row['again']}": row["gap"] for row in rows if row["gap"] > 1e-5} == {}
    assert all(balance > 0.2 for row in rows for _, balance in row["ours"])  # 0.2 is balanced
