"""A disk without space, a pretended one: what is made durable in a folder is counted in blocks, and refused from some
number on, as quotas of network file systems are."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from distft.run import files

BLOCK = 4096
_SYNC = os.fsync


def fill(folder: Path, monkeypatch: pytest.MonkeyPatch, free: int = 0) -> None:
    """From now on `folder` takes only so many more blocks than it has now."""
    most = _blocks(folder) + free

    def fsync(descriptor: int) -> None:
        if _blocks(folder) > most:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        _SYNC(descriptor)

    monkeypatch.setattr(files.os, "fsync", fsync)


def _blocks(folder: Path) -> int:
    return sum(-(-path.stat().st_size // BLOCK) for path in folder.rglob("*") if path.is_file())
