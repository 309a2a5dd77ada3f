"""Finds the rank that hangs: one that is stopped, or the one that is behind when all of them stand still."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from distft import pulse
from distft.rundir import this_host

STOPPED_SECONDS = 30.0  # without a beat and without CPU time
STARTING_SECONDS = 300.0  # the same, before the first beat: imports from a slow file system
PAUSED_SECONDS = 5.0  # between two looks of our own: it was us who stood still, or the whole machine
LOOK_SECONDS = 1.0


def shared_memory() -> int:
    """A file for a rank's pulse, in memory only."""
    descriptor = os.memfd_create("distft-pulse")
    os.ftruncate(descriptor, pulse.BYTES)
    return descriptor


@dataclass
class Patient:
    """One rank, as it was seen."""

    number: int
    pid: int
    memory: mmap.mmap
    beats: int = 0
    cpu: float = 0.0
    moves: int = 0
    passed: int = 0
    place: str = ""
    alive_at: float = field(default_factory=time.monotonic)
    moved_at: float = field(default_factory=time.monotonic)

    def look(self, now: float) -> None:
        sign, cpu = pulse.read(self.memory), cpu_seconds(self.pid)
        if (sign.beats, cpu) != (self.beats, self.cpu):
            self.beats, self.cpu, self.alive_at = sign.beats, cpu, now
        if sign.moves != self.moves:
            self.moves, self.passed, self.place, self.moved_at = sign.moves, sign.passed, sign.place, now

    @property
    def where(self) -> str:
        return f"rank {self.number} on {this_host()}"


class Watchdog:
    """Looks at the ranks of a node.

    Args:
        standstill: seconds without a step forward of any rank of this node after which the attempt is given up.
    """

    def __init__(self, patients: list[Patient], standstill: float) -> None:
        self._patients, self._standstill = patients, standstill
        self._looked = time.monotonic()

    def hanging(self) -> str | None:
        """Which rank hangs and where, in words; None while all is well."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return None
        paused, self._looked = now - self._looked > PAUSED_SECONDS, now
        for patient in self._patients:
            patient.look(now)
            if paused:
                patient.alive_at = patient.moved_at = now
        for patient in self._patients:
            limit = STOPPED_SECONDS if patient.beats else STARTING_SECONDS
            if now - patient.alive_at > limit:
                place = patient.place or "its start"
                return f"hang: {patient.where} gave no sign of life for {limit:.0f} s, in {place}"
        moving = max((patient.moved_at for patient in self._patients), default=now)
        if now - moving > self._standstill:
            behind = min(self._patients, key=lambda patient: patient.passed)
            alone = behind.passed < max(patient.passed for patient in self._patients)
            who = behind.where if alone or len(self._patients) == 1 else f"all ranks on {this_host()}"
            place = behind.place or "its start"
            return f"hang: {who} did not get on for {self._standstill:.0f} s, in {place}"
        return None


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used; 0.0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
