"""The place that a plan is for: how many nodes and ranks, their GPU, and how much memory a node has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distft.plan.devices import Device


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
