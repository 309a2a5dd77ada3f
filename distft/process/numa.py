"""NUMA: a rank computes on the cores that are near its GPU, as far as it may use them."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path
from typing import Any

SYSFS = Path("/sys")


def bind(properties: Any, ranks: int, sysfs: Path = SYSFS) -> str | None:
    """Keep this process, and the threads that it starts from now on, on the cores of its GPU's NUMA node.

    Nothing is changed where the system does not know the node, or too few of its cores are left to this process.

    Args:
        properties: of the GPU, as torch has them.
        ranks: on this machine.

    Returns:
        What the log says of it; None if nothing was changed.
    """
    address = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}.0"
    nodes = sysfs / "devices/system/node"
    try:
        node = int((sysfs / "bus/pci/devices" / address / "numa_node").read_text())
        near = cores((nodes / f"node{node}" / "cpulist").read_text()) if node >= 0 else set[int]()
        count = len(list(nodes.glob("node[0-9]*")))
    except (OSError, ValueError):
        return None
    allowed = os.sched_getaffinity(0)
    chosen = near & allowed
    if count < 2 or chosen == allowed or len(chosen) < -(-ranks // count):
        return None
    os.sched_setaffinity(0, chosen)
    return f"on {len(chosen)} cores of NUMA node {node}, where GPU {address} is"


def cores(text: str) -> Set[int]:
    """Of a list as Linux writes it: 0-3,8,10-11."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
