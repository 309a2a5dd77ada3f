"""What a file system refuses: one sentence, and an exit code by which a job on another node is tried or not."""

from __future__ import annotations

import errno
import os

import pytest

from distft.exit_codes import run_command


@pytest.mark.parametrize(
    ("number", "of_command", "of_rank"),
    [(errno.ENOSPC, 2, 2), (errno.EROFS, 2, 1), (errno.EACCES, 2, 1), (errno.EIO, 2, 1), (errno.ESTALE, 2, 1)],
)
def test_a_refusal_on_a_node_is_not_the_users_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, of_command: int, of_rank: int
) -> None:
    def refused() -> None:
        raise OSError(number, os.strerror(number), "/scratch/run")

    monkeypatch.delenv("RANK", raising=False)
    assert run_command(refused) == of_command
    monkeypatch.setenv("RANK", "0")
    assert run_command(refused) == of_rank
    assert capsys.readouterr().err.count("distft: error: ") == 2


def test_what_may_be_our_own_mistake_keeps_its_traceback() -> None:
    def lost() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/scratch/run/x")

    with pytest.raises(FileNotFoundError):
        run_command(lost)
