"""How much memory a job, and each of its ranks, may use of a machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory_given(groups: Path = GROUPS, own: Path = OWN) -> int:
    """Bytes of memory that this process and its like may use: the machine's, or fewer by a limit of their control
    groups (Linux, versions 1 and 2), as a container or a job has."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return found[0]
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers not in ("", "memory"):
            continue
        top, name = (groups, "memory.max") if not controllers else (groups / "memory", "memory.limit_in_bytes")
        inner = Path(path.strip("/"))
        for folder in (inner, *inner.parents):
            with suppress(OSError, ValueError):  # "max": none
                found.append(int((top / folder / name).read_text(encoding="utf-8")))
    return min(found)


def memory_of_rank() -> int:
    """Bytes: an equal share for each rank of this machine."""
    return memory_given() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
