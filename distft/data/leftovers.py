"""Leftovers in the token cache: what killed writers have left, what was kept beside a folder that is gone, and indexes
of streams that nobody has used for long."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

SEVERAL = "several-"  # how a name begins after which things are called that are kept for several folders together

_DAY = 86400.0  # seconds
_LONG = 30 * _DAY  # a job may wait in the queue
_BESIDE = ("*.rows-*", "*.pieces-*", "*.twins-*", "*.damaged")


def used(path: Path) -> None:
    """Have a file that is kept for later runs count as used today."""
    with suppress(OSError):  # it is somebody else's
        if path.stat().st_mtime < time.time() - _DAY:
            os.utime(path)


def remove(root: Path) -> None:
    """Remove what nobody goes on with."""
    for folder, limit in (
        dict.fromkeys(root.glob("*.tmp-*"), _DAY) | dict.fromkeys(root.glob("*.part"), _LONG)
    ).items():
        if _is_older(limit, folder, *folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)
    for path in (path for pattern in _BESIDE for path in root.glob(pattern)):
        owner = path.name.partition(".")[0]
        if not (root / owner).exists() and _is_older(_LONG if owner.startswith(SEVERAL) else _DAY, path):
            _unlink(path)
    for path in root.glob("index-*"):
        if _is_older(_LONG, path):
            _unlink(path)


def _is_older(limit: float, *paths: Path) -> bool:
    """Whether nothing was written there for so many seconds."""
    try:
        return max(path.stat().st_mtime for path in paths) < time.time() - limit
    except OSError:  # its writer is at work
        return False


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
