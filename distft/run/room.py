"""Room for last words: a file in the run folder that makes way for run.json when the disk, or a quota, is full."""

from __future__ import annotations

import os
from pathlib import Path

from distft.errors import no_space
from distft.run.files import complete_file

SIZE = 64 * 1024


def keep_room(reserve: Path) -> None:
    """Make the file, where it is missing and there is room for it."""
    if reserve.exists():
        return
    try:
        _fill(reserve)
    except OSError as error:
        if not no_space(error):
            raise


def shortage(reserve: Path) -> OSError | None:
    """Why there is no room for more than last words: for the reserve, made again where it was used, and as much
    beside it. None: there is, or it cannot be known."""
    probe = reserve.with_suffix(".probe")
    try:
        if not reserve.exists():
            _fill(reserve)
        _fill(probe)
        probe.unlink()
    except OSError as error:
        return error if no_space(error) else None
    return None


def _fill(path: Path) -> None:
    with complete_file(path) as temporary:
        temporary.write_bytes(os.urandom(SIZE))  # a file system that compresses gives zeros no room
