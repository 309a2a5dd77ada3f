"""Digests that are remembered: read once, and again only what changed or was not reached."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distft.run.digest import remembered_each


class Stopped(Exception):
    pass


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"model-{number}.safetensors" for number in range(4)]
    for path in found:
        path.write_text(path.name)
    return found


def test_a_process_that_was_stopped_is_continued(files: list[Path], tmp_path: Path) -> None:
    read: list[str] = []

    def until_the_third(path: Path) -> str:
        if path == files[2]:
            raise Stopped
        return read_whole(path)

    def read_whole(path: Path) -> str:
        read.append(path.name)
        return f"digest of {path.name}"

    memory, expected = tmp_path / "base.json", [f"digest of {path.name}" for path in files]
    with pytest.raises(Stopped):
        remembered_each(files, memory, until_the_third)
    assert remembered_each(files, memory, read_whole) == expected
    assert read == [path.name for path in files]  # each once
    assert remembered_each(files, memory, read_whole) == expected
    files[1].write_text("changed")
    os.utime(files[3], ns=(0, 0))
    remembered_each(files, memory, read_whole)
    assert read[4:] == [files[1].name, files[3].name]


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"files": [], "sha256": "x"}), "\udcff"])
def test_a_memory_that_is_none_is_not_believed(files: list[Path], tmp_path: Path, content: str) -> None:
    memory = tmp_path / "base.json"
    memory.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert remembered_each(files, memory, lambda path: path.name) == [path.name for path in files]
    assert remembered_each(files, memory, lambda path: "not asked") == [path.name for path in files]
