"""How much memory a job, and each of its ranks, may use of a machine."""

from __future__ import annotations

import os
from pathlib import Path

from distft.process.control_groups import GROUPS, OWN, limits


def memory_given(groups: Path = GROUPS, own: Path = OWN) -> int:
    """Bytes of memory that this process and its like may use: the machine's, or fewer by a limit of their control
    groups, as a container or a job has."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for words in limits("memory", "memory.max", "memory.limit_in_bytes", groups, own):
        found += map(int, filter(str.isdigit, words))  # "max": none
    return min(found)


def memory_of_rank() -> int:
    """Bytes: an equal share for each rank of this machine."""
    return memory_given() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
