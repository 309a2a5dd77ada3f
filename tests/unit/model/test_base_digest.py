"""The digest of a base model: read once for all, and again only what changed or was not reached."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from distft.errors import Preempted
from distft.model import base_digest
from distft.process import stop_signals


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "model"
    made.mkdir()
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors", "pytorch_model.bin", "notes.txt"):
        (made / name).write_text(name)
    return made


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    checksum: Callable[[Path], str] = base_digest.checksum

    def noted(path: Path) -> str:
        found.append(path.name)
        return checksum(path)

    monkeypatch.setattr(base_digest, "checksum", noted)
    return found


NAMES = ["config.json", "model-1.safetensors", "model-2.safetensors", "pytorch_model.bin"]


def test_the_digest_is_that_of_earlier_versions(folder: Path) -> None:
    lines = [f"{name} {xxhash.xxh3_128_hexdigest((folder / name).read_bytes())}\n" for name in NAMES]
    assert base_digest.digest(folder) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_only_what_changed_is_read_again(folder: Path, read: list[str]) -> None:
    first = base_digest.digest(folder)
    assert sorted(read) == NAMES
    assert base_digest.digest(folder) == first
    assert len(read) == 4
    times = (folder / NAMES[1]).stat()
    (folder / NAMES[1]).write_text("MODEL-1.safetensors")  # as many bytes, and as old
    os.utime(folder / NAMES[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert base_digest.digest(folder) != first
    assert read[4:] == [NAMES[1]]


def test_a_copy_is_not_believed_to_be_what_it_was_copied_from(folder: Path, read: list[str]) -> None:
    base_digest.digest(folder)
    shutil.copytree(folder, folder.with_name("copy"))
    base_digest.digest(folder.with_name("copy"))
    assert sorted(read[4:]) == NAMES


def test_a_stop_keeps_what_was_found(folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(stop_signals, "requested", lambda: len(read) == 3)
        with pytest.raises(Preempted):
            base_digest.digest(folder)
    base_digest.digest(folder)
    assert sorted(read) == NAMES  # each once


def test_where_the_model_lies_nothing_need_be_written(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = base_digest.write_atomically

    def refused(path: Path, text: str) -> None:
        if path.parent == folder:
            raise PermissionError
        write(path, text)

    monkeypatch.setattr(base_digest, "write_atomically", refused)
    assert base_digest.digest(folder) == base_digest.digest(folder)
    assert len(read) == 4
    assert not (folder / base_digest.MEMORY).exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"config.json": 1}', json.dumps({"config.json": [1, 2]}), "\udcff"])
def test_a_memory_that_is_none_is_not_believed(folder: Path, content: str) -> None:
    expected = base_digest.digest(folder)
    (folder / base_digest.MEMORY).write_bytes(content.encode("utf-8", "surrogateescape"))
    shutil.rmtree(folder.parent / "cache", ignore_errors=True)
    assert base_digest.digest(folder) == expected
