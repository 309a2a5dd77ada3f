"""The light parent: starts the ranks of a node, passes signals on, collects exit codes. No torch in it.

The first rank that leaves decides the attempt: its exit code is the attempt's, the others follow in a
grace time or are killed. Ranks run in their own sessions, so that a Ctrl-C of the terminal reaches the
parent alone, which passes it on.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from distft import preempt
from distft.config import Recipe
from distft.errors import DONE, FAILED, PREEMPTED, USAGE
from distft.rundir import Attempt, Run, RunDir, State, this_host

FOLLOW_SECONDS = {DONE: 120.0, PREEMPTED: 60.0}  # time for the other ranks after the first one left so
FOLLOW_AFTER_CRASH_SECONDS = 10.0
POLL_SECONDS = 0.05
ERROR_PREFIX = "distft: error: "


@dataclass(frozen=True)
class Node:
    """The ranks this parent owns, and where all ranks of the attempt meet."""

    nproc: int
    first_rank: int = 0
    world_size: int | None = None  # default: nproc
    address: str = "127.0.0.1"
    port: int = 0  # 0: one that is free, chosen by rank 0's listening socket

    @property
    def world(self) -> int:
        return self.world_size or self.nproc


@dataclass(frozen=True)
class Rank:
    number: int
    process: subprocess.Popen[bytes]
    log: Path


def run_attempt(run: RunDir, recipe: Recipe, node: Node, lock: int) -> int:
    """One attempt, recorded in run.json. Returns its exit code."""
    record = run.read()
    attempt = begin(run, record, recipe, node)
    code, cause = FAILED, "the parent process failed"
    try:
        code, cause = run_ranks(run, attempt.number, node, lock)
    finally:
        try:
            finish(run, record, attempt, code, cause)
        except OSError as error:
            # No space even for this: what filled the disk was said already, and the next attempt closes this one.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or code == DONE:
                raise
    return code


def begin(run: RunDir, record: Run, recipe: Recipe, node: Node) -> Attempt:
    for earlier in record.attempts:
        if earlier.end is None:  # its parent could not write any more
            close(run, earlier, FAILED, "killed", end=last_sign_of_life(run, earlier))
    attempt = Attempt(
        number=len(record.attempts) + 1,
        hosts=[this_host()],
        pid=os.getpid(),
        world_size=node.world,
        zero_stage=recipe.engine.zero_stage,
        start=time.time(),
    )
    record.attempts.append(attempt)
    record.state = "running"
    run.write(record)
    run.attempt_logs(attempt.number).mkdir(parents=True, exist_ok=True)
    return attempt


def finish(run: RunDir, record: Run, attempt: Attempt, code: int, cause: str) -> None:
    close(run, attempt, code, cause, end=time.time())
    states: dict[int, State] = {DONE: "done", PREEMPTED: "preempted"}
    record.state = states.get(code, "failed")
    run.write(record)


def close(run: RunDir, attempt: Attempt, code: int, cause: str, end: float) -> None:
    steps = [record["step"] for record in run.records() if record.get("attempt") == attempt.number and "loss" in record]
    attempt.first_step, attempt.last_step = (steps[0], steps[-1]) if steps else (None, None)
    attempt.exit_code, attempt.cause, attempt.end = code, cause, end


def last_sign_of_life(run: RunDir, attempt: Attempt) -> float:
    logs = [path.stat().st_mtime for path in run.attempt_logs(attempt.number).glob("*.log")]
    return max([attempt.start, *logs])


def run_ranks(run: RunDir, attempt: int, node: Node, lock: int) -> tuple[int, str]:
    """Start, watch and end the ranks. Returns (exit code, cause in words)."""
    pending: deque[signal.Signals] = deque(preempt.received())
    if pending:
        return PREEMPTED, f"preempted ({pending[0].name}) before the ranks were started"
    # Signals are held while ranks start: none is lost between two of them, and ranks inherit the held mask.
    preempt.hold()
    try:
        ranks = start_ranks(run, attempt, node, lock)
    finally:
        preempt.listen()
    try:
        return watch(ranks)
    finally:
        end(ranks)


def start_ranks(run: RunDir, attempt: int, node: Node, lock: int) -> list[Rank]:
    listener = socket.create_server((node.address, node.port)) if node.first_rank == 0 else None
    port = listener.getsockname()[1] if listener else node.port
    threads = max(1, len(os.sched_getaffinity(0)) // node.nproc)
    console = os.dup(sys.stderr.fileno())  # in a rank, descriptor 2 is its log
    ranks: list[Rank] = []
    for local in range(node.nproc):
        number = node.first_rank + local
        keep = [lock, console] + ([listener.fileno()] if listener and number == 0 else [])
        environment = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            "RANK": str(number),
            "LOCAL_RANK": str(local),
            "WORLD_SIZE": str(node.world),
            "LOCAL_WORLD_SIZE": str(node.nproc),
            "MASTER_ADDR": node.address,
            "MASTER_PORT": str(port),
            "PYTHONUNBUFFERED": "1",
            "DISTFT_ATTEMPT": str(attempt),
            "DISTFT_PARENT": str(os.getpid()),
        }
        if node.address == "127.0.0.1":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if number == 0:
            environment["DISTFT_CONSOLE_FD"] = str(console)
            if listener:
                environment["DISTFT_LISTEN_FD"] = str(listener.fileno())
        log = run.attempt_logs(attempt) / f"rank-{number}.log"
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
        ranks.append(Rank(number, process, log))
    os.close(console)
    if listener:
        listener.close()
    return ranks


def watch(ranks: list[Rank]) -> tuple[int, str]:
    """Wait for the first rank to leave, then for the others as long as their grace time lasts."""
    passed_on = 0
    first: Rank | None = None
    deadline = float("inf")
    while running := [rank for rank in ranks if rank.process.poll() is None]:
        signals = preempt.received()
        for number in signals[passed_on:]:
            pass_on(number, running, first_time=passed_on == 0)
            passed_on += 1
        if [number for number in signals if number is signal.SIGINT][1:]:
            deadline = 0.0  # Ctrl-C twice: the user does not want to wait for a save
        if first is None and len(running) < len(ranks):
            first = min((rank for rank in ranks if rank not in running), key=blame)
            deadline = time.monotonic() + FOLLOW_SECONDS.get(first.process.returncode, FOLLOW_AFTER_CRASH_SECONDS)
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
    gone = [rank for rank in ranks if rank.process.poll() is not None]
    return verdict(first or min(gone, key=blame, default=None))


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


def verdict(first: Rank | None) -> tuple[int, str]:
    """What the first rank that left says about the attempt."""
    signals = preempt.received()
    if first is None:
        return PREEMPTED, "killed by a second Ctrl-C before it could save"
    code = first.process.returncode
    if code == DONE:
        return DONE, "finished"
    if code == PREEMPTED:
        return PREEMPTED, f"preempted ({signals[0].name})" if signals else "preempted"
    if code < 0:
        cause = f"rank {first.number} was killed by {signal.Signals(-code).name}"
        say(f"{cause}; its log: {first.log}", sys.stderr)
        return FAILED, cause
    log = first.log.read_text(encoding="utf-8", errors="replace")
    _, found, sentence = log.rpartition(f"\n{ERROR_PREFIX}")  # a rank's error is the last thing it says
    if found:
        say(f"error: {sentence.strip()}", sys.stderr)
        return (USAGE if code == USAGE else FAILED), sentence.strip()
    end_of_log = "\n".join(log.splitlines()[-20:])
    say(f"rank {first.number} failed (exit code {code}); the end of {first.log}:\n{end_of_log}", sys.stderr)
    return FAILED, f"rank {first.number} crashed"


def say(message: str, stream: TextIO) -> None:
    print(f"distft: {message}", file=stream, flush=True)


def end(ranks: list[Rank]) -> None:
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.kill()
        rank.process.wait()
