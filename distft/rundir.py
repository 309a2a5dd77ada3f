"""A run on disk. The folder is the run: whoever holds it can continue, inspect or export it.

    config.yaml        the resolved recipe
    run.json           name, state, wandb_id, one entry an attempt
    metrics.jsonl      one object an optimizer step, one an evaluation
    loss.png           the chart of the above
    logs/              attempt-001/rank-0.log
    base/              the base model, where the recipe makes one (`model.init`)
    checkpoints/       step-00000050/
    final/             what the run was for: adapter or model, in the format of PEFT / transformers

`run.json` has one writer, the light parent of the first node, and one attempt at a time holds `lock`.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distft.errors import UserError

State = Literal["new", "running", "done", "preempted", "failed"]


@dataclass
class Attempt:
    """One try to bring the run forward, from the start of its processes to their end."""

    number: int
    hosts: list[str]
    pid: int
    world_size: int
    zero_stage: int
    start: float  # seconds since the epoch
    end: float | None = None
    cause: str | None = None  # why it ended, in words
    exit_code: int | None = None
    first_step: int | None = None  # optimizer steps recorded by it; None: not one
    last_step: int | None = None


@dataclass
class Run:
    """The content of run.json."""

    name: str
    state: State = "new"
    wandb_id: str = field(default_factory=lambda: secrets.token_hex(4))
    created: float = field(default_factory=time.time)
    attempts: list[Attempt] = field(default_factory=list)


def write_atomically(path: Path, text: str) -> None:
    """The old content or the new one, whatever happens in between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunDir:
    """Names of what is in a run folder, and the two files that describe it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config = self.path / "config.yaml"
        self.json = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.chart = self.path / "loss.png"
        self.logs = self.path / "logs"
        self.base = self.path / "base"
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"

    def exists(self) -> bool:
        return self.json.exists()

    def create(self, name: str, config: str) -> None:
        """Make the folder of a new run. `run.json` comes last: with it the run exists."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; a run folder is wanted (--run-dir)")
        for folder in (self.path, self.logs, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, config)
        self.write(Run(name))

    def read(self) -> Run:
        """run.json.

        Raises:
            UserError: the folder holds no run, or run.json cannot be read.
        """
        try:
            stored = json.loads(self.json.read_text(encoding="utf-8"))
            attempts = [Attempt(**attempt) for attempt in stored.pop("attempts")]
            return Run(attempts=attempts, **stored)
        except FileNotFoundError:
            raise UserError(f"{self.path} holds no run: there is no run.json in it") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.json} is not what distft wrote ({error}); restore it from a copy") from None

    def write(self, run: Run) -> None:
        write_atomically(self.json, json.dumps(dataclasses.asdict(run), indent=2) + "\n")

    def records(self) -> Iterator[dict[str, Any]]:
        """Objects of metrics.jsonl in the order written; a line cut off by a crash is passed over."""
        if not self.metrics.exists():
            return
        with open(self.metrics, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record

    def attempt_logs(self, number: int) -> Path:
        return self.logs / f"attempt-{number:03d}"

    @contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the run. The file descriptor is handed to the ranks, so that the lock outlives a killed parent
        until its last rank is gone.

        Raises:
            UserError: another attempt holds it; the message names that attempt.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is in use by {self._holder()}; wait for it or stop it first") from None
            yield descriptor
        finally:
            os.close(descriptor)

    def _holder(self) -> str:
        attempts = self.read().attempts if self.exists() else []
        if not attempts:
            return "another process that is just starting"
        last = attempts[-1]
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last.start))
        return f"attempt {last.number} (process {last.pid} on {', '.join(last.hosts)}, since {since})"


def this_host() -> str:
    return socket.gethostname()
