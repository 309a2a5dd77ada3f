"""One command at a time prepares a run folder: makes it, sends its job, or takes down where it lies.

The lease says who trains; this is the short time before, which several commands may want at once.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distft.errors import UserError
from distft.run.folder import RunDir
from distft.run.lease import try_lock

NAME = ".turn"
PATIENCE_SECONDS = 20.0
POLL_SECONDS = 0.1


@contextmanager
def in_turn(run: RunDir, patience: float = PATIENCE_SECONDS) -> Iterator[bool]:
    """Wait for the commands before this one. Yields whether the folder was made for this one.

    Raises:
        UserError: another command is not done in time.
    """
    deadline, made = time.monotonic() + patience, False
    while True:
        made = _make(run.path) or made
        descriptor = _open(run.path / NAME)
        if descriptor is not None:
            try:
                if try_lock(descriptor, fcntl.LOCK_EX) is not False and _is_still(run.path / NAME, descriptor):
                    yield made
                    return
            finally:
                os.close(descriptor)
        if time.monotonic() > deadline:
            raise UserError(f"another command is at work on {run.path}; try again when it is done")
        time.sleep(POLL_SECONDS)


def _make(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if folder.is_file() or (folder.is_symlink() and not folder.exists()):
            raise
        return False
    return True


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:  # the folder was removed a moment ago
        return None


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether a path leads to an open file: another command may have removed the folder and a third made it again."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
