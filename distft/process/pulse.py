"""Heartbeat and progress of a rank, in memory shared with its light parent.

The parent hands over a file that both map into memory (DISTFT_PULSE_FD). A thread counts beats, which stop when the
process is stopped or its machine hangs. The work counts the places it passes, in the same order on all ranks, so that
of ranks that wait for each other the one that is behind can be named; within a place it may count that it moves.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
import threading
import time
from dataclasses import dataclass

from distft.process import environment, failpoint

BEAT_SECONDS = 1.0
BYTES = 256
STACKS = signal.SIGQUIT  # has a rank write the stacks of all its threads into its log
HEADER = struct.Struct("<QQQH")  # beats, moves, places passed, length of the place's name


@dataclass(frozen=True)
class Sign:
    """What a parent reads. All zero and empty until the rank has begun."""

    beats: int
    moves: int
    passed: int
    place: str


class _Pulse:
    """Nobody looks, until `begin`."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._beats = self.moves = self._passed = 0
        self._place = b""
        self._lock = threading.Lock()

    def begin(self) -> None:
        faulthandler.register(STACKS, all_threads=True)
        descriptor = os.environ.pop(environment.PULSE_FD, None)
        if descriptor is None:
            return
        self._memory = mmap.mmap(int(descriptor), BYTES)
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    @property
    def place(self) -> str:
        return self._place.decode(errors="replace")

    def at(self, place: str) -> None:
        self._place = place.encode()[: BYTES - HEADER.size]
        self._passed += 1
        self.moving()

    def moving(self) -> None:
        self.moves += 1
        self._write()

    def _beat(self) -> None:
        while True:
            self._beats += 1
            self._write()
            time.sleep(BEAT_SECONDS)

    def _write(self) -> None:
        if self._memory is not None:
            with self._lock:
                header = HEADER.pack(self._beats, self.moves, self._passed, len(self._place))
                self._memory[: HEADER.size + len(self._place)] = header + self._place


_pulse = _Pulse()


def begin() -> None:
    """Beat from now on, and answer `STACKS`."""
    _pulse.begin()


def silence() -> None:
    """For a forked process, which is no rank: nobody sees what it counts. A lock of its parent may be held for ever."""
    global _pulse
    _pulse = _Pulse()


def at(place: str) -> None:
    """This rank has come to `place`. All ranks must pass the same places in the same order."""
    _pulse.at(place)
    failpoint.reach(place)


def moving() -> None:
    """The work at this place goes on; for places that take long."""
    _pulse.moving()


def place() -> str:
    """Where this process is; empty if it has passed no place."""
    return _pulse.place


def moves() -> int:
    """How often this process has moved."""
    return _pulse.moves


def read_sign(memory: mmap.mmap) -> Sign:
    beats, moves, passed, length = HEADER.unpack(memory[: HEADER.size])
    return Sign(beats, moves, passed, memory[HEADER.size : HEADER.size + length].decode(errors="replace"))
