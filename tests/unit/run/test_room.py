"""Room for last words: what a run can still record on a disk without space."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from distft.run import files, room
from distft.run.folder import Run, RunDir
from tests.unit.full_disk import BLOCK, fill


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create("x", "")
    return made


def test_a_run_keeps_room_that_is_really_taken(run: RunDir) -> None:
    assert run.reserve.stat().st_blocks * 512 >= room.SIZE
    assert len(set(run.reserve.read_bytes())) == 256  # nothing that a file system could compress


def test_last_words_take_the_place_of_the_reserve(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(run.path, monkeypatch)
    run.write(Run("x", state="failed"))
    assert run.read().state == "failed"
    assert not run.reserve.exists()
    assert room.shortage(run.reserve) is not None  # it finds its place again, and nothing else does
    assert run.reserve.exists()
    run.write(Run("x", state="held", reason="r" * 3 * BLOCK))
    assert run.read().state == "held"
    assert [path.name for path in run.path.iterdir() if path.name.startswith((".", "reserve."))] == []


def test_without_a_reserve_a_full_disk_is_said_and_what_was_there_stays(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.reserve.unlink()
    fill(run.path, monkeypatch)
    room.keep_room(run.reserve)
    assert not run.reserve.exists()
    with pytest.raises(OSError, match="quota exceeded"):
        run.write(Run("x", state="failed"))
    assert run.read().state == "new"


def test_what_is_not_for_lack_of_space_takes_no_reserve(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        run.write(Run("x", state="failed"))
    assert run.reserve.exists()
    assert room.shortage(run.reserve) is None


def test_there_is_room_where_as_much_again_is_left(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    size = room.SIZE // BLOCK
    for free, enough in ((size - 1, False), (size, True)):
        fill(run.path, monkeypatch, free)
        assert (room.shortage(run.reserve) is None) is enough
    run.reserve.unlink()
    assert room.shortage(run.reserve) is None
    assert run.reserve.exists()
    assert not run.reserve.with_suffix(".probe").exists()
