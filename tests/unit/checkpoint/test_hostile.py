"""A pickle in the place of any file of a checkpoint is never executed, whether or not the manifest was made to fit."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from distft.checkpoint import state, store
from distft.checkpoint.disk import Digest, checksum
from distft.errors import UserError
from tests.chaos import corrupt

NAMES = (state.STATE, state.file_of(0), state.file_of(1), store.MANIFEST)


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path: Path) -> bytes:
    content = pickle.dumps(Canary(tmp_path / "sung"))
    pickle.loads(content)
    assert (tmp_path / "sung").exists()  # it can sing
    (tmp_path / "sung").unlink()
    return content


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoint_before_is_used(tmp_path: Path, canary: bytes, name: str) -> None:
    corrupt.make(tmp_path / "checkpoints")
    (store.folder_of(tmp_path / "checkpoints", corrupt.NEW) / name).write_bytes(canary)
    assert corrupt.answer(tmp_path / "checkpoints") is None
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_manifest_that_was_made_to_fit_does_not_help(tmp_path: Path, canary: bytes, name: str) -> None:
    corrupt.make(tmp_path / "checkpoints")
    folder = store.folder_of(tmp_path / "checkpoints", corrupt.NEW)
    (folder / name).write_bytes(canary)
    files = json.loads((folder / store.MANIFEST).read_text())["files"]
    digests = [Digest(f["name"], (folder / f["name"]).stat().st_size, checksum(folder / f["name"])) for f in files]
    (folder / store.MANIFEST).write_text(store.manifest_of(corrupt.NEW, digests))
    chosen, _ = state.newest(tmp_path / "checkpoints")
    assert chosen == folder
    with pytest.raises(UserError, match="is not a valid checkpoint") as caught:
        list(state.Stored(folder).weights())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sung").exists()


def test_pickles_beside_the_files_are_not_looked_at(tmp_path: Path, canary: bytes) -> None:
    corrupt.make(tmp_path / "checkpoints")
    folder = store.folder_of(tmp_path / "checkpoints", corrupt.NEW)
    for name in ("optimizer.pt", "rank-00002.safetensors", "pytorch_model.bin", "rng_state.pth"):
        (folder / name).write_bytes(canary)
    chosen, passed_over = state.newest(tmp_path / "checkpoints")
    assert (chosen, passed_over) == (folder, [])
    assert state.Stored(folder).progress.step == corrupt.NEW
    assert not (tmp_path / "sung").exists()
