"""The place that a plan is for: how many nodes and ranks, their GPU, and how much memory a node has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from distft.plan.devices import Device

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Place:
    """Where a run is to take place, as far as its launcher knows.

    Attributes:
        per_node: ranks of a node.
        device: GPU of each rank; None: they run on CPUs.
        memory: bytes of host memory that a job gets of a node; None: they are not known.
        hub: where models of the hub are, if not in this process's cache of the hub.
        unknown: sentences about what is not known, each with how to say it.
    """

    nodes: int
    per_node: int
    device: Device | None = None
    memory: int | None = None
    hub: Path | None = None
    unknown: Sequence[str] = ()

    @property
    def is_known(self) -> bool:
        """Whether it is known how much memory there is for the ranks."""
        return (self.memory if self.device is None else self.device.memory) is not None


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
