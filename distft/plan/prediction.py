"""A prediction: memory of each rank at the moments of a run, term by term, and the time of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distft.plan.devices import Device
from distft.plan.duration import Times

GIB = 1 << 30
EVALUATION = "evaluation"
EXPORT = "export"  # the moment of a process that begins when all ranks have ended


@dataclass(frozen=True)
class Moment:
    """What one rank's device, or its process in host memory, holds at most at one time of a run: bytes by term."""

    name: str
    terms: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.terms.values())


@dataclass(frozen=True)
class Prediction:
    """Of a recipe on `world` ranks, `per_node` of them on a node.

    Attributes:
        device: None: a CPU, whose memory the ranks of a node share.
        moments: of one rank.
        host_moments: of host memory: of one rank beside its GPU, and `EXPORT`, of one process on the node of rank 0.
        room: bytes that one rank may use; None: it is not known.
        node_memory: bytes of host memory of a node; None: they are not known.
        times: of an optimizer step; None: nothing is known of the device.
        useful: share of its FLOPs that are not there to compute activations again.
        step_tokens: tokens that are fed in it.
        checkpoint: bytes of one.
        doubts: sentences about what is not counted exactly.
        node_moments: of all ranks of a node on its CPUs; empty: their devices are GPUs.
    """

    world: int
    per_node: int
    device: Device | None
    moments: Sequence[Moment]
    host_moments: Sequence[Moment]
    room: int | None
    node_memory: int | None
    times: Times | None
    useful: float
    step_tokens: int
    checkpoint: int
    doubts: Sequence[str] = ()
    node_moments: Sequence[Moment] = ()

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def host(self) -> int:
        """Bytes of host memory of one rank, at most: on a CPU all that it takes."""
        own = [moment for moment in self.host_moments if moment.name != EXPORT] if self.device else [self.peak]
        return max((moment.total for moment in own), default=0)

    @property
    def node(self) -> int:
        """Bytes of host memory of a node, at most."""
        later = (moment.total for moment in self.host_moments if moment.name == EXPORT)
        ranks = max((moment.total for moment in self.node_moments), default=self.per_node * self.host)
        return max(ranks, *later, 0)

    @property
    def step_seconds(self) -> float | None:
        """Of an optimizer step; None: it is not known."""
        return self.times.step if self.times is not None else None

    @property
    def fits(self) -> bool:
        """Whether it is not known to be too large."""
        return self.room is None or self.peak.total <= self.room

    @property
    def blame(self) -> str:
        """The term that is largest at the peak."""
        return max(self.peak.terms, key=lambda name: self.peak.terms[name])


def text_of(size: float) -> str:
    """Bytes for people: "31.4 GiB", "512 MiB"."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"
