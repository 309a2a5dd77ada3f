"""The memory that a process may use."""

from __future__ import annotations

from pathlib import Path

from distft.process.memory import memory_given

GIB = 1 << 30


def limited(folder: Path, own: str, **limits: str) -> int:
    for name, text in limits.items():
        path = folder / name.replace("__", "/")
        path.mkdir(parents=True, exist_ok=True)
        for file in ("memory.max", "memory.limit_in_bytes"):
            (path / file).write_text(f"{text}\n")
    (folder / "own").write_text(own)
    return memory_given(folder, folder / "own")


def test_the_smallest_limit_of_all_groups_above(tmp_path: Path) -> None:
    whole = memory_given(tmp_path, tmp_path / "nothing")
    assert whole > GIB
    assert limited(tmp_path, "0::/job/step\n", job=str(GIB), job__step="max") == GIB
    assert limited(tmp_path, "0::/other\n", other="max") == whole
    assert limited(tmp_path, "0::/huge\n", huge=str(1 << 62)) == whole
    assert limited(tmp_path, "4:memory:/a\n3:cpu:/b\n", memory__a=str(GIB // 2), b="1") == GIB // 2
    assert limited(tmp_path, "no lines of groups\n") == whole
