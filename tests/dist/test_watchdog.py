"""Which rank hangs, told from pulses of several processes; and no alarm where all is well."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distft.process import pulse
from distft.run.folder import this_host
from launchers import watchdog
from launchers.forkserver import Rank, shared_memory
from launchers.watchdog import Watchdog, cpu_seconds

BEATING = """
import sys, time
from distft.process import pulse
pulse.begin()
for number in range(int(sys.argv[1])):
    pulse.at(f"place {number}")
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "STOPPED_SECONDS", 3.0)
    monkeypatch.setattr(watchdog, "LOOK_SECONDS", 0.1)


def start(number: int, places: int) -> tuple[subprocess.Popen[bytes], Rank]:
    descriptor = shared_memory()
    process = subprocess.Popen(
        [sys.executable, "-c", BEATING, str(places)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[descriptor],
        env={**os.environ, "DISTFT_PULSE_FD": str(descriptor)},
    )
    memory = mmap.mmap(descriptor, pulse.BYTES)
    os.close(descriptor)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process, Rank(f"rank {number}", Path("log"), process.pid, memory=memory)


@pytest.fixture
def two() -> Iterator[tuple[list[subprocess.Popen[bytes]], list[Rank]]]:
    started = [start(0, 5), start(1, 4)]
    yield [process for process, _ in started], [rank for _, rank in started]
    for process, _ in started:
        process.kill()
        process.communicate()


def watched(dog: Watchdog, ranks: list[Rank], seconds: float) -> str | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := dog.hanging(ranks)) is not None:
            return found
        time.sleep(0.05)
    return None


def test_a_stopped_rank_is_named(two: tuple[list[subprocess.Popen[bytes]], list[Rank]]) -> None:
    processes, ranks = two
    dog = Watchdog(standstill=1000.0)
    assert watched(dog, ranks, 1.0) is None
    processes[1].send_signal(signal.SIGSTOP)
    said = watched(dog, ranks, 10.0)
    assert said == f"hang: rank 1 on {this_host()} gave no sign of life for 3 s, in place 3"


def test_of_ranks_that_wait_for_each_other_the_one_behind_is_named(
    two: tuple[list[subprocess.Popen[bytes]], list[Rank]],
) -> None:
    _, ranks = two
    said = watched(Watchdog(standstill=1.0), ranks, 10.0)
    assert said == f"hang: rank 1 on {this_host()} made no progress for 1 s, in place 3"


def test_ranks_that_live_and_move_raise_no_alarm(two: tuple[list[subprocess.Popen[bytes]], list[Rank]]) -> None:
    _, ranks = two
    assert watched(Watchdog(standstill=1000.0), ranks, watchdog.STOPPED_SECONDS + 1.0) is None


def test_a_pause_of_the_machine_is_no_hang(
    two: tuple[list[subprocess.Popen[bytes]], list[Rank]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ranks = two
    dog = Watchdog(standstill=5.0)
    assert watched(dog, ranks, 0.5) is None
    later = time.monotonic() + 3600
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: later)
    assert dog.hanging(ranks) is None


def test_stacks_are_told_on_request(two: tuple[list[subprocess.Popen[bytes]], list[Rank]]) -> None:
    processes, _ = two
    processes[0].send_signal(pulse.STACKS)
    assert processes[0].stderr is not None
    assert b"most recent call first" in processes[0].stderr.readline()
    assert processes[0].poll() is None


def test_long_names_of_places_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pulse._Pulse()
    made._memory = mmap.mmap(-1, pulse.BYTES)
    made.at("x" * 1000)
    made.at("ä" * 500)
    sign = pulse.read_sign(made._memory)
    assert (sign.passed, sign.moves) == (2, 2)
    assert len(sign.place.encode()) <= pulse.BYTES
    assert cpu_seconds(os.getpid()) > 0
    assert cpu_seconds(2**22 + 1) == 0.0
