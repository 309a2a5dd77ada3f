"""The light parent: starts the ranks of a node, passes signals on, collects exit codes. No torch in it.

The first rank that leaves decides the attempt: its exit code is the attempt's, the others follow in a
grace time or are killed. Ranks run in another session, so that a Ctrl-C of the terminal reaches the
parent alone, which passes it on.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from distft.errors import DONE, FAILED, PREEMPTED, USAGE
from distft.process import environment, stop_signals
from distft.process.devices import allocator_settings
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir, this_host
from launchers.attempt import Verdict
from launchers.forkserver import Child, ForkServer, Rank
from launchers.watchdog import Watchdog

FOLLOW_SECONDS = {DONE: 120.0, PREEMPTED: 60.0}  # time for the other ranks after the first one left so
FOLLOW_AFTER_CRASH_SECONDS = 3.0  # they can only say what they lost
POLL_SECONDS = 0.05
LOOK_AROUND_SECONDS = 0.5
STANDSTILL = 0.9  # of engine.timeout: the rank that hangs is to be named before the others give up waiting for it
ERROR_PREFIX = "distft: error: "
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Node:
    """The ranks this parent owns, and where all ranks of the attempt meet."""

    nproc: int
    index: int = 0  # of this node in the attempt
    nodes: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    interface: str | None = "lo"  # on the way to the other ranks, for gloo; None: not known
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


LookAround = Callable[[], Verdict | None]
"""Called twice a second while ranks run: a verdict where the attempt has ended on another node.
Raises RunFailed where the run was taken over."""


class Household:
    """What a light parent keeps from one attempt to the next: the fork server of its node."""

    def __init__(self, run: RunDir, nproc: int) -> None:
        self._run, self.nproc = run, nproc
        self._server: ForkServer | None = None

    def server(self, attempt: int, index: int) -> ForkServer:
        """The fork server; a new one where there is none that works. It starts importing at once."""
        if self._server is None or not self._server.usable:
            threads = str(max(1, len(os.sched_getaffinity(0)) // self.nproc))
            # NumPy's library starts its threads when it is imported, and they do not survive a fork.
            own = {"OMP_NUM_THREADS": threads, **allocator_settings(os.environ)}
            common = {**own, **os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            log = self._run.attempt_logs(attempt) / f"node-{index}.log"
            self._server = ForkServer(self._run, log, common)
        first = index * self.nproc
        read_ahead(self._run, range(first, first + self.nproc))  # the disk works while the fork server imports
        return self._server

    def end(self) -> None:
        if self._server is not None:
            self._server.end()


def read_ahead(run: RunDir, ranks: range) -> None:
    """Have the kernel fetch what `ranks` wrote of the newest checkpoint, and the run's own base model, and do not wait
    for it."""
    newest = run.checkpoints / f"step-{run.newest_commit():08d}"
    written = (newest / f"rank-{rank:05d}.safetensors" for rank in ranks)
    for path in [*written, *sorted(run.base.glob("*.safetensors"))]:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            os.close(descriptor)


@contextmanager
def household(run: RunDir, nproc: int) -> Iterator[Household]:
    made = Household(run, nproc)
    try:
        yield made
    finally:
        made.end()


def run_ranks(run: RunDir, node: Node, claim: Claim, look_around: LookAround, home: Household) -> Verdict:
    """Start, watch and end the ranks of this node."""
    if pending := stop_signals.received():
        return Verdict(PREEMPTED, f"preempted ({pending[0].name}) before the ranks were started", weight=-1)
    with forking(home, claim, node.index) as server:
        ranks = start_ranks(run, node, claim, server)
        return watch(server, ranks, Watchdog(STANDSTILL * node.timeout), look_around)


def export(run: RunDir, recipe: Recipe, claim: Claim, look_around: LookAround, home: Household) -> Verdict:
    """Start and watch the process that writes `final/`, on the first node, when all ranks have ended."""
    variables = {environment.WORK: "export", "RANK": "0", "LOCAL_WORLD_SIZE": str(home.nproc)}
    variables |= {environment.ATTEMPT: str(claim.attempt), environment.TOKEN: claim.token}
    log = run.attempt_logs(claim.attempt) / "export.log"
    with forking(home, claim, index=0) as server:
        child = server.fork(run, "the export", 0, log, variables, shared_files(claim, first=True))
        return watch(server, [child], Watchdog(STANDSTILL * recipe.engine.timeout), look_around)


@contextmanager
def forking(home: Household, claim: Claim, index: int) -> Iterator[ForkServer]:
    """The fork server of this node; what it has forked is ended at the end.

    Stop signals are held while it starts: it inherits that, and so do its processes until they listen.
    """
    stop_signals.hold_back()
    try:
        server = home.server(claim.attempt, index)
    finally:
        stop_signals.listen()
    try:
        yield server
    finally:
        server.end_ranks()


def start_ranks(run: RunDir, node: Node, claim: Claim, server: ForkServer) -> list[Rank]:
    ranks = []
    for local in range(node.nproc):
        number = node.index * node.nproc + local
        files = shared_files(claim, first=number == 0)
        if number == 0 and node.listener:
            files[environment.LISTEN_FD] = node.listener.fileno()
        log = run.attempt_logs(claim.attempt) / f"rank-{number}.log"
        ranks.append(server.fork(run, f"rank {number}", number, log, rank_environment(node, claim, local), files))
    if node.listener:
        node.listener.close()
    return ranks


def shared_files(claim: Claim, first: bool) -> dict[str, int]:
    """Descriptors for a process of an attempt, by the variables that tell it their numbers."""
    files = {environment.LOCK_FD: claim.lock} if claim.lock is not None else {}
    if first:
        files[environment.CONSOLE_FD] = sys.stderr.fileno()  # in a rank, descriptor 2 is its log
    return files


def rank_environment(node: Node, claim: Claim, local: int) -> dict[str, str]:
    variables = {
        "RANK": str(node.index * node.nproc + local),
        "LOCAL_RANK": str(local),
        "WORLD_SIZE": str(node.world),
        "LOCAL_WORLD_SIZE": str(node.nproc),
        "MASTER_ADDR": node.address,
        "MASTER_PORT": str(node.port),
        environment.ATTEMPT: str(claim.attempt),
        environment.TOKEN: claim.token,
    }
    if node.deadline is not None:
        variables[environment.DEADLINE] = str(node.deadline)
    # NCCL needs no such help: it passes over loopback by itself, and takes all fast networks that it finds.
    if node.interface is not None and GLOO_INTERFACE not in os.environ:
        variables[GLOO_INTERFACE] = node.interface
    return variables


def watch(server: ForkServer, ranks: list[Rank], watchdog: Watchdog, look_around: LookAround) -> Verdict:
    """Wait for the first rank to leave, here or elsewhere, then for the others as long as their grace time lasts."""
    first: Child | None = None
    elsewhere: Verdict | None = None
    killed_before = killed_for_memory()
    deadline, next_look = float("inf"), 0.0
    while running := [rank for rank in ranks if rank.code is None]:
        now = time.monotonic()
        signals = stop_signals.received()
        if signals and not server.ready:
            return Verdict(PREEMPTED, f"preempted ({signals[0].name}) before the ranks were started", weight=-1)
        pass_on(signals, running)
        if [number for number in signals if number is signal.SIGINT][1:]:
            deadline = 0.0  # Ctrl-C twice: the user does not want to wait for a save
        if first is None and len(running) < len(ranks):
            first = min((rank for rank in ranks if rank not in running), key=blame)
            deadline = min(deadline, now + grace(first.code))
        if now >= next_look:
            next_look = now + LOOK_AROUND_SECONDS
            if elsewhere is None and (elsewhere := look_around()) is not None:
                deadline = min(deadline, now + grace(elsewhere.code))
        if first is None and elsewhere is None and (hang := watchdog.hanging(begun(server, ranks))):
            say(f"{hang}; the stacks of all ranks are in their logs: {ranks[0].log.parent}", sys.stderr)
            return Verdict(FAILED, hang, host=this_host())
        if now > deadline:
            break
        time.sleep(POLL_SECONDS)
        server.look()
    if server.code is not None:
        first = first or server
    first = first or min((rank for rank in ranks if rank.code is not None), key=blame, default=None)
    return elsewhere if first is None and elsewhere is not None else verdict(first, killed_for_memory() > killed_before)


def begun(server: ForkServer, ranks: list[Rank]) -> list[Child]:
    """The processes that should get on: the fork server as long as it imports, then the ranks."""
    return [rank for rank in ranks if rank.pid is not None] if server.ready else [server]


def grace(code: int | None) -> float:
    return FOLLOW_SECONDS.get(FAILED if code is None else code, FOLLOW_AFTER_CRASH_SECONDS)


def blame(child: Child) -> int:
    """Of ranks that left within one poll, which is the cause and which the consequence; smallest first."""
    code = FAILED if child.code is None else child.code
    if code == PREEMPTED and stop_signals.requested():
        return -1  # one that left before the first step closes connections, on which another may abort
    return 0 if code < 0 else {USAGE: 1, PREEMPTED: 2, FAILED: 3, DONE: 5}.get(code, 4)


def pass_on(signals: Sequence[signal.Signals], running: list[Rank]) -> None:
    """Tell each rank that has begun of the stop signals that it does not know of."""
    for rank in running:
        if rank.pid is None:
            continue
        for number in signals[rank.told :]:
            rank.send(number)
        rank.told = len(signals)


def killed_for_memory(counters: Path = Path("/proc/vmstat")) -> int:
    """How many processes the kernel of this machine has killed because memory ran out, its own or a job's share."""
    try:
        found = re.search(r"^oom_kill (\d+)$", counters.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def verdict(first: Child | None, memory_ran_out: bool = False) -> Verdict:
    """What the first rank that left says about the attempt; or the fork server, where it was the first.

    Args:
        memory_ran_out: whether the kernel has killed a process on this machine for lack of memory meanwhile.
    """
    signals = stop_signals.received()
    if first is None or first.code is None:
        return Verdict(PREEMPTED, "killed by a second Ctrl-C before it could save", weight=-1)
    code, weight = first.code, blame(first)
    if code == DONE:
        return Verdict(DONE, "finished", weight)
    if code == PREEMPTED:
        return Verdict(PREEMPTED, f"preempted ({signals[0].name})" if signals else "preempted", weight)
    if code < 0:
        cause = f"{first.name} was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL and memory_ran_out:
            cause += ", when the kernel killed a process for lack of host memory; give the job more (`memory`)"
        say(f"{cause}; its log: {first.log}", sys.stderr)
        return Verdict(FAILED, cause, weight, this_host())
    log = first.log.read_text(encoding="utf-8", errors="replace")
    _, found, sentence = log.rpartition(f"\n{ERROR_PREFIX}")  # a rank's error is the last thing it says
    if found:
        say(f"error: {sentence.strip()}", sys.stderr)
        return Verdict(USAGE if code == USAGE else FAILED, sentence.strip(), weight)
    end_of_log = "\n".join(log.splitlines()[-20:])
    say(f"{first.name} failed (exit code {code}); the end of {first.log}:\n{end_of_log}", sys.stderr)
    return Verdict(FAILED, f"{first.name} crashed", weight, this_host())


def say(message: str, stream: TextIO) -> None:
    print(f"distft: {message}", file=stream, flush=True)
