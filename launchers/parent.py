"""The light parent: starts the ranks of a node, passes signals on, collects exit codes. No torch in it.

The first rank that leaves decides the attempt: its exit code is the attempt's, the others follow in a
grace time or are killed. Ranks run in their own sessions, so that a Ctrl-C of the terminal reaches the
parent alone, which passes it on.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from distft import preempt, pulse
from distft.errors import DONE, FAILED, PREEMPTED, USAGE
from distft.rundir import RunDir
from launchers.attempt import Verdict
from launchers.watchdog import Patient, Watchdog, shared_memory

FOLLOW_SECONDS = {DONE: 120.0, PREEMPTED: 60.0}  # time for the other ranks after the first one left so
FOLLOW_AFTER_CRASH_SECONDS = 10.0
POLL_SECONDS = 0.05
LOOK_AROUND_SECONDS = 0.5
STACKS_SECONDS = 0.5
STANDSTILL = 0.9  # of engine.timeout: the rank that hangs is to be named before the others give up waiting for it
ERROR_PREFIX = "distft: error: "


@dataclass(frozen=True)
class Node:
    """The ranks this parent owns, and where all ranks of the attempt meet."""

    nproc: int
    index: int = 0  # of this node in the attempt
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    listener: socket.socket | None = None  # of the first node: what rank 0 listens on
    deadline: float | None = None  # seconds since the epoch; the scheduler ends the job then
    timeout: float = float("inf")  # seconds a collective may take

    @property
    def world(self) -> int:
        return self.nproc * self.nodes


@dataclass(frozen=True)
class Claim:
    """What the ranks of an attempt write under: its number, the token of its lease, and the lock they keep."""

    attempt: int
    token: str
    lock: int | None = None


@dataclass(frozen=True)
class Rank:
    number: int
    process: subprocess.Popen[bytes]
    log: Path
    memory: mmap.mmap  # its pulse


LookAround = Callable[[], Verdict | None]
"""Called twice a second while ranks run: a verdict where the attempt has ended on another node.
Raises RunFailed where the run was taken over."""


def run_ranks(run: RunDir, node: Node, claim: Claim, look_around: LookAround) -> Verdict:
    """Start, watch and end the ranks of this node."""
    if pending := preempt.received():
        return Verdict(PREEMPTED, f"preempted ({pending[0].name}) before the ranks were started", weight=-1)
    # Signals are held while ranks start: none is lost between two of them, and ranks inherit the held mask.
    preempt.hold()
    try:
        ranks = start_ranks(run, node, claim)
    finally:
        preempt.listen()
    try:
        patients = [Patient(rank.number, rank.process.pid, rank.memory) for rank in ranks]
        return watch(ranks, Watchdog(patients, STANDSTILL * node.timeout), look_around)
    finally:
        end(ranks)


def start_ranks(run: RunDir, node: Node, claim: Claim) -> list[Rank]:
    console = os.dup(sys.stderr.fileno())  # in a rank, descriptor 2 is its log
    ranks: list[Rank] = []
    for local in range(node.nproc):
        number = node.index * node.nproc + local
        pulse_file = shared_memory()
        keep = [console, pulse_file] + ([claim.lock] if claim.lock is not None else [])
        environment = {**rank_environment(node, claim, local), "DISTFT_PULSE_FD": str(pulse_file)}
        if number == 0:
            environment["DISTFT_CONSOLE_FD"] = str(console)
            if node.listener:
                environment["DISTFT_LISTEN_FD"] = str(node.listener.fileno())
                keep.append(node.listener.fileno())
        log = run.attempt_logs(claim.attempt) / f"rank-{number}.log"
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "distft", "train", "--run-dir", str(run.path)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=keep,
                start_new_session=True,
            )
        ranks.append(Rank(number, process, log, mmap.mmap(pulse_file, pulse.BYTES)))
        os.close(pulse_file)
    os.close(console)
    if node.listener:
        node.listener.close()
    return ranks


def rank_environment(node: Node, claim: Claim, local: int) -> dict[str, str]:
    environment = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // node.nproc)),
        **os.environ,
        "RANK": str(node.index * node.nproc + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(node.world),
        "LOCAL_WORLD_SIZE": str(node.nproc),
        "MASTER_ADDR": node.address,
        "MASTER_PORT": str(node.port),
        "PYTHONUNBUFFERED": "1",
        "DISTFT_ATTEMPT": str(claim.attempt),
        "DISTFT_TOKEN": claim.token,
        "DISTFT_PARENT": str(os.getpid()),
    }
    if node.deadline is not None:
        environment["DISTFT_DEADLINE"] = str(node.deadline)
    if node.nodes == 1:
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment


def watch(ranks: list[Rank], watchdog: Watchdog, look_around: LookAround) -> Verdict:
    """Wait for the first rank to leave, here or elsewhere, then for the others as long as their grace time lasts."""
    passed_on = 0
    first: Rank | None = None
    elsewhere: Verdict | None = None
    deadline, next_look = float("inf"), 0.0
    while running := [rank for rank in ranks if rank.process.poll() is None]:
        now = time.monotonic()
        signals = preempt.received()
        for number in signals[passed_on:]:
            pass_on(number, running, first_time=passed_on == 0)
            passed_on += 1
        if [number for number in signals if number is signal.SIGINT][1:]:
            deadline = 0.0  # Ctrl-C twice: the user does not want to wait for a save
        if first is None and len(running) < len(ranks):
            first = min((rank for rank in ranks if rank not in running), key=blame)
            deadline = min(deadline, now + grace(first.process.returncode))
        if now >= next_look:
            next_look = now + LOOK_AROUND_SECONDS
            if elsewhere is None and (elsewhere := look_around()) is not None:
                deadline = min(deadline, now + grace(elsewhere.code))
        if first is None and elsewhere is None and (hang := watchdog.hanging()) is not None:
            say(f"{hang}; the stacks of all ranks are in their logs: {ranks[0].log.parent}", sys.stderr)
            return Verdict(FAILED, hang)
        if now > deadline:
            break
        time.sleep(POLL_SECONDS)
    gone = [rank for rank in ranks if rank.process.poll() is not None]
    first = first or min(gone, key=blame, default=None)
    return elsewhere if first is None and elsewhere is not None else verdict(first)


def grace(code: int) -> float:
    return FOLLOW_SECONDS.get(code, FOLLOW_AFTER_CRASH_SECONDS)


def blame(rank: Rank) -> int:
    """Of ranks that left within one poll, which is the cause and which the consequence; smallest first."""
    code = rank.process.returncode
    if code == PREEMPTED and preempt.requested():
        return -1  # one that left before the first step closes connections, on which another may abort
    return 0 if code < 0 else {USAGE: 1, PREEMPTED: 2, FAILED: 3, DONE: 5}.get(code, 4)


def pass_on(number: signal.Signals, running: list[Rank], first_time: bool) -> None:
    if first_time:
        again = "; Ctrl-C again kills it, losing the steps since the last checkpoint" if number is signal.SIGINT else ""
        say(f"{number.name} received: stopping at the next step{again}", sys.stderr)
    for rank in running:
        rank.process.send_signal(number)


def verdict(first: Rank | None) -> Verdict:
    """What the first rank that left says about the attempt."""
    signals = preempt.received()
    if first is None:
        return Verdict(PREEMPTED, "killed by a second Ctrl-C before it could save", weight=-1)
    code, weight = first.process.returncode, blame(first)
    if code == DONE:
        return Verdict(DONE, "finished", weight)
    if code == PREEMPTED:
        return Verdict(PREEMPTED, f"preempted ({signals[0].name})" if signals else "preempted", weight)
    if code < 0:
        cause = f"rank {first.number} was killed by {signal.Signals(-code).name}"
        say(f"{cause}; its log: {first.log}", sys.stderr)
        return Verdict(FAILED, cause, weight)
    log = first.log.read_text(encoding="utf-8", errors="replace")
    _, found, sentence = log.rpartition(f"\n{ERROR_PREFIX}")  # a rank's error is the last thing it says
    if found:
        say(f"error: {sentence.strip()}", sys.stderr)
        return Verdict(USAGE if code == USAGE else FAILED, sentence.strip(), weight)
    end_of_log = "\n".join(log.splitlines()[-20:])
    say(f"rank {first.number} failed (exit code {code}); the end of {first.log}:\n{end_of_log}", sys.stderr)
    return Verdict(FAILED, f"rank {first.number} crashed", weight)


def say(message: str, stream: TextIO) -> None:
    print(f"distft: {message}", file=stream, flush=True)


def end(ranks: list[Rank]) -> None:
    """Kill the ranks that are still there, and have them say first where they are."""
    left = [rank for rank in ranks if rank.process.poll() is None]
    for rank in left:
        if pulse.read(rank.memory).beats:  # before, the signal would leave a core file and no stacks
            rank.process.send_signal(pulse.STACKS)
            rank.process.send_signal(signal.SIGCONT)
    if left:
        time.sleep(STACKS_SECONDS)
    for rank in left:
        rank.process.kill()
    for rank in ranks:
        rank.process.wait()
