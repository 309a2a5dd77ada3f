"""Verdicts: files in the run folder that say how an attempt or a job ended on each node.

slurm/job-JOB-RESTART/attempt-003/node-1.json     how attempt 3 ended on the second node; its ranks have ended then
slurm/job-JOB-RESTART/node-0.json                 how this start of the job ended; the requeue policy reads it
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from distft.errors import DONE, FAILED
from distft.run.files import write_atomically
from distft.run.folder import RunDir
from launchers.attempt import Verdict

FOLDER = "slurm"
POLL_SECONDS = 0.05
GATHER_SECONDS = 5.0  # for the verdicts of nodes whose ranks failed at the same time
ALL_ENDED_SECONDS = 30.0  # for nodes on which ranks are still being ended
LEADER_LEAVES_SECONDS = 15.0
_NAME = re.compile(r"node-\d+\.json")
CRASHED = 3  # the weight of a rank that left with an error, from which on it may be a consequence


def folder(run: RunDir, job: str, restart: int) -> Path:
    """Where the nodes of one start of a job leave their verdicts."""
    return run.path / FOLDER / f"job-{job}-{restart}"


def _make(folder: Path) -> None:
    """Make a folder and those above it, but not the run's: where that is gone, the run may have been moved."""
    if not folder.is_dir():
        if folder.name != FOLDER:
            _make(folder.parent)
        folder.mkdir(exist_ok=True)


def read_verdict(path: Path) -> Verdict | None:
    try:
        return Verdict(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(frozen=True)
class Verdicts:
    """Those of one start of a job, as the node with this index sees them."""

    folder: Path
    index: int
    nodes: int

    def of(self, attempt: int) -> Verdicts:
        """Those of one of its attempts."""
        return Verdicts(self.folder / f"attempt-{attempt:03d}", self.index, self.nodes)

    def leave(self, verdict: Verdict) -> None:
        with suppress(OSError):  # a full disk; srun's exit code remains
            _make(self.folder)
            write_atomically(self.folder / f"node-{self.index}.json", json.dumps(asdict(verdict)))

    def of_leader(self) -> Verdict | None:
        return self._of(0)

    def _there(self) -> list[int]:
        """The other nodes that have left theirs, by one listing: to ask for a file that is not there costs a shared
        file system as much as for one that is."""
        try:
            names = os.listdir(self.folder)
        except OSError:  # nobody has left any
            return []
        found = sorted(int(name[5:-5]) for name in names if _NAME.fullmatch(name))
        return [index for index in found if index != self.index and index < self.nodes]

    def _by_name(self) -> dict[int, Verdict]:
        """Those of the other nodes, each asked for, which is dear: a listing may be some seconds old."""
        found = {index: self._of(index) for index in range(self.nodes) if index != self.index}
        return {index: verdict for index, verdict in found.items() if verdict is not None}

    def _of(self, index: int) -> Verdict | None:
        return read_verdict(self.folder / f"node-{index}.json")

    def elsewhere(self) -> Verdict | None:
        """Of the verdicts that other nodes have left, the one that names the cause; cheap enough for every look."""
        found = [self._of(index) for index in self._there()]
        return min(filter(None, found), key=lambda verdict: verdict.weight, default=None)

    def all_there(self, seconds: float = ALL_ENDED_SECONDS) -> bool:
        """Wait until all other nodes have left theirs."""
        deadline = time.monotonic() + seconds
        while len(self._there()) < self.nodes - 1:
            if time.monotonic() >= deadline:
                return len(self._by_name()) == self.nodes - 1
            time.sleep(POLL_SECONDS)
        return True

    def weighed(self, own: Verdict, seconds: float = GATHER_SECONDS) -> Verdict:
        """Of all nodes' verdicts the one that names the cause; waits for those that fail at the same time."""
        if own.code != DONE:
            self.all_there(seconds)
        return min([own, *self._by_name().values()], key=lambda verdict: verdict.weight)

    def blamed(self, weighed: Verdict, hosts: list[str], seconds: float = ALL_ENDED_SECONDS) -> Verdict:
        """A rank that crashed without a word may have lost its peers: then the node that leaves no verdict is named."""
        if weighed.code != FAILED or weighed.host is None or weighed.weight < CRASHED or self.all_there(seconds):
            return weighed
        if not (silent := self.silent(hosts)):
            return weighed
        return replace(weighed, cause=f"node lost: {silent[0]} is silent, {weighed.cause}", host=silent[0])

    def silent(self, hosts: list[str]) -> list[str]:
        """Those of all hosts, in their order, that have left no verdict."""
        left = {self.index, *self._by_name()}
        return [host for index, host in enumerate(hosts) if index not in left]

    def let_the_leader_finish(self) -> None:
        """The first task that leaves with another code than 0 has srun send SIGTERM to the others."""
        deadline = time.monotonic() + LEADER_LEAVES_SECONDS
        while self.of_leader() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
