"""The client of a node's fork server (`distft.training.forkserver`), used by the light parent."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distft.process import environment, pulse
from distft.process.interpreter import running
from distft.run.folder import RunDir

MESSAGE_BYTES = 1 << 16
STACKS_SECONDS = 0.5
REAP_SECONDS = 10.0


def shared_memory() -> int:
    """A file for a rank's pulse, in memory only."""
    descriptor = os.memfd_create("distft-pulse")
    os.ftruncate(descriptor, pulse.BYTES)
    return descriptor


@dataclass
class Child:
    """A process of this node, as its light parent knows it."""

    name: str
    log: Path
    pid: int | None = None  # None: it is still to be forked
    code: int | None = None  # exit code, negative: the signal that killed it; None: it has not ended
    memory: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, pulse.BYTES))  # its pulse, if it has one

    def send(self, number: signal.Signals) -> None:
        if self.pid is not None and self.code is None:
            with suppress(ProcessLookupError):  # it ended a moment ago
                os.kill(self.pid, number)


@dataclass
class Rank(Child):
    number: int = 0
    told: int = 0  # stop signals that were passed on to it


class ForkServer(Child):
    """One process a node. It imports at once, and forks ranks when it has done so, as often as it is asked."""

    def __init__(self, run: RunDir, log: Path, variables: Mapping[str, str]) -> None:
        """`environment` is what the ranks of this node have in common."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = {environment.FORKSERVER_FD: str(theirs.fileno()), environment.PARENT: str(os.getpid())}
        with theirs, open(log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *running("distft", "train", "--run-dir", str(run.path))],
                env={**variables, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        super().__init__("the fork server", log, self._process.pid)
        self.ready = False  # whether its imports are done
        self._ranks: list[Rank] = []

    def fork(
        self, run: RunDir, name: str, number: int, log: Path, variables: Mapping[str, str], files: Mapping[str, int]
    ) -> Rank:
        """Order a rank, or another process of the run. It begins when the imports are done.

        Args:
            name: what to call it in messages.
            variables: what this rank does not have in common with the others.
            files: open descriptors that the rank gets, by the names of the variables that tell it their numbers.
        """
        rank = Rank(name, log, number=number)
        pulse_file, output = shared_memory(), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        rank.memory = mmap.mmap(pulse_file, pulse.BYTES)
        everything = {"log": output, environment.PULSE_FD: pulse_file, **files}
        order = {"run": str(run.path), "number": number, "environment": dict(variables), "files": list(everything)}
        with suppress(BrokenPipeError, ConnectionResetError):  # `look` finds that it has gone
            socket.send_fds(self._socket, [json.dumps(order).encode()], list(everything.values()))
        os.close(pulse_file)
        os.close(output)
        self._ranks.append(rank)
        return rank

    def look(self) -> None:
        """Take in what it has told. Where it has died, its ranks die with it."""
        for news in self._news():
            if "ready" in news:
                self.ready = True
            elif "number" in news:
                next(r for r in self._ranks if r.number == news["number"] and r.pid is None).pid = news["pid"]
            else:
                next(r for r in self._ranks if r.pid == news["pid"] and r.code is None).code = news["code"]
        self._ranks = [rank for rank in self._ranks if rank.code is None]
        self.code = self._process.poll()
        if self.code is not None:
            for rank in self._ranks:
                rank.code = -signal.SIGKILL

    def _news(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                message = self._socket.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                return
            if not message:
                return
            yield json.loads(message)

    def end_ranks(self) -> None:
        """Kill the ranks that are still there, and have them say first where they are. Returns when they have ended."""
        self.look()
        if any(rank.pid is None for rank in self._ranks):  # ordered, and nobody knows whether they have begun
            self.end()
            return
        for rank in self._ranks:
            if pulse.read_sign(rank.memory).beats:  # before, the signal would leave a core file and no stacks
                rank.send(pulse.STACKS)
                rank.send(signal.SIGCONT)
        if self._ranks:
            time.sleep(STACKS_SECONDS)
        for rank in self._ranks:
            rank.send(signal.SIGKILL)
        deadline = time.monotonic() + REAP_SECONDS
        while self._ranks and time.monotonic() < deadline:
            self.look()
            time.sleep(0.01)
        if self._ranks:
            self.end()

    def end(self) -> None:
        """Kill it, and its ranks with it."""
        if self._socket.fileno() == -1:
            return
        self._process.kill()
        self._process.wait()
        self.look()
        self._ranks = []
        self._socket.close()

    @property
    def usable(self) -> bool:
        return self._process.poll() is None
