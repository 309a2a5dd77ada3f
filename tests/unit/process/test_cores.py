"""The cores that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distft.process.cores import cores

WHOLE = 8


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(WHOLE)))


def limited(folder: Path, own: str, files: dict[str, str]) -> int:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    (folder / "own").write_text(own)
    return cores(folder, folder / "own")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job/step\n", {"job/cpu.max": "250000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "100000 50000"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000"}, 1),
        ("0::/\n", {"cpu.max": "9900000 100000"}, WHOLE),
        ("3:cpu,cpuacct:/a\n0::/\n", {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000"}, 2),
        ("3:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, WHOLE),
        ("3:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "1", "cpu/a/cpu.cfs_period_us": "100000"}, WHOLE),
        ("0::/gone\n", {}, WHOLE),
    ],
)
def test_a_quota_counts_beside_the_cores_to_run_on(
    tmp_path: Path, own: str, files: dict[str, str], expected: int
) -> None:
    assert limited(tmp_path, own, files) == expected


def test_where_nothing_is_known_of_groups_all_count(tmp_path: Path) -> None:
    assert cores(tmp_path, tmp_path / "nothing") == WHOLE
