"""One command at a time on a run folder, even where the folder goes away in between."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from distft.errors import UserError
from distft.run import lease, turn
from distft.run.folder import RunDir
from distft.run.turn import NAME, in_turn


def test_the_folder_is_made_by_one_of_them(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "deep" / "run")
    with in_turn(run) as made:
        assert made
        with pytest.raises(UserError, match=rf"another command is at work on {run.path}"), in_turn(run, patience=0.2):
            pass
    with in_turn(run) as made:
        assert not made


def test_a_lock_of_a_folder_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command before this one failed and removed what it had made, between our open and our lock."""
    run, tries = RunDir(tmp_path / "run"), []

    def try_lock(descriptor: int, how: int) -> bool | None:
        tries.append(descriptor)
        if len(tries) == 1:
            shutil.rmtree(run.path)
        return lease.try_lock(descriptor, how)

    monkeypatch.setattr(turn, "try_lock", try_lock)
    with in_turn(run) as made:
        assert made
        assert (len(tries), (run.path / NAME).exists()) == (2, True)
        with pytest.raises(UserError), in_turn(run, patience=0.2):
            pass


def test_what_is_no_folder_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(FileExistsError, match=name), in_turn(RunDir(tmp_path / name)):
            pass
