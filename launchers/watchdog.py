"""The watchdog: finds a rank that hangs, or the one that is behind when no rank makes progress."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distft.process import pulse
from distft.run.folder import this_host
from launchers.forkserver import Child

STOPPED_SECONDS = 30.0  # without a beat and without CPU time
STARTING_SECONDS = 300.0  # the same, before the first beat: imports from a slow file system
PAUSED_SECONDS = 5.0  # between two looks of our own: it was us who stood still, or the whole machine
LOOK_SECONDS = 1.0


@dataclass
class Seen:
    """One process, as it was seen."""

    beats: int = 0
    cpu: float = 0.0
    moves: int = 0
    passed: int = 0
    place: str = ""
    alive_at: float = field(default_factory=time.monotonic)
    moved_at: float = field(default_factory=time.monotonic)

    def look(self, child: Child, now: float) -> None:
        sign, cpu = pulse.read_sign(child.memory), cpu_seconds(child.pid)
        if (sign.beats, cpu) != (self.beats, self.cpu):
            self.beats, self.cpu, self.alive_at = sign.beats, cpu, now
        if sign.moves != self.moves:
            self.moves, self.passed, self.place, self.moved_at = sign.moves, sign.passed, sign.place, now

    @property
    def where(self) -> str:
        return self.place or "its start"


class Watchdog:
    """Looks at processes of a node.

    Args:
        standstill: seconds without a step forward of any rank of this node after which the attempt is given up.
    """

    def __init__(self, standstill: float) -> None:
        self._standstill = standstill
        self._seen: dict[str, Seen] = {}
        self._looked = time.monotonic()

    def hanging(self, begun: Sequence[Child]) -> str | None:
        """Which of the processes that have begun hangs and where, in words; None while all is well."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        paused, self._looked = now - self._looked > PAUSED_SECONDS, now
        self._seen = {child.name: self._seen.get(child.name, Seen()) for child in begun}
        for child in begun:
            seen = self._seen[child.name]
            seen.look(child, now)
            if paused:
                seen.alive_at = seen.moved_at = now
        for name, seen in self._seen.items():
            limit = STOPPED_SECONDS if seen.beats else STARTING_SECONDS
            if now - seen.alive_at > limit:
                return f"hang: {name} on {this_host()} gave no sign of life for {limit:.0f} s, in {seen.where}"
        return self._standing_still(now)

    def _standing_still(self, now: float) -> str | None:
        ranks = {name: seen for name, seen in self._seen.items() if seen.beats}
        if not ranks or now - max(seen.moved_at for seen in ranks.values()) <= self._standstill:
            return None
        name, behind = min(ranks.items(), key=lambda item: item[1].passed)
        alone = behind.passed < max(seen.passed for seen in ranks.values())
        who = name if alone or len(ranks) == 1 else "all ranks"
        return f"hang: {who} on {this_host()} made no progress for {self._standstill:.0f} s, in {behind.where}"


def cpu_seconds(pid: int | None) -> float:
    """CPU time a process has used; 0.0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
