"""Whether the file system of a run folder takes what is written: one that is read-only or full ends a run silently."""

from __future__ import annotations

import os
from pathlib import Path


def refusal(folder: Path) -> str | None:
    """Why its file system takes nothing from users, in words; None where nothing is known against it."""
    found = os.statvfs(folder)
    if found.f_flag & os.ST_RDONLY:
        return f"the file system of {folder} is read-only"
    # Some file systems count no blocks, or no inodes, and say that all 0 of them are free.
    if (found.f_blocks and not found.f_bavail) or (found.f_files and not found.f_favail):
        return f"the file system of {folder} is full"
    return None
