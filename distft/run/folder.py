"""The run folder: everything about a run, enough to continue, inspect or export it.

    config.yaml        the resolved recipe
    run.json           name, id, state, wandb_id, one entry an attempt
    lease.json         who is at work on it (see lease.py)
    reserve            room on the disk for run.json's last words (see room.py)
    metrics.jsonl      one object an optimizer step, one an evaluation
    loss.png           the chart of the above
    tensorboard/       the same as TensorBoard's event file, if the recipe asks for it
    logs/              attempt-001/rank-0.log, attempt-001/plan.json
    slurm/             what was sent to SLURM, and what the jobs said
    base/              the base model, where the recipe makes one (`model.init`)
    hub.json           the commits of what is read from the hub (see commits.py)
    labels.json        the label set, where the task has one
    bad-records.jsonl  the records that were left out as bad (`data.bad_records: skip`)
    packing.json       that documents do not share rows, where the recipe leaves it open and a trial has shown it
    batch.json         micro-batch and recomputation, where the recipe leaves them open (`auto`)
    attention.json     whether a trial has found attention by document right for the model (`model.attention`)
    reference.safetensors  what the starting model made of pairs of answers (DPO without an adapter)
    checkpoints/       step-00000050/
    evaluations/       what `distft eval` found: tables (JSON) and pictures
    final/             what the run was for: adapter or model, in the format of PEFT / transformers

`run.json` has one writer: the light parent of the first node, and when it is gone the requeue policy of its job.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distft.errors import UserError, no_space
from distft.run.files import lines_backwards, write_atomically
from distft.run.room import keep_room

State = Literal["new", "running", "done", "preempted", "trained", "failed", "held", "cancelled"]


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
    job: str | None = None  # the scheduler's
    restart: int = 0  # how often the scheduler had started that job again
    commit_before: int = 0  # step of the newest checkpoint at its start; 0: none
    commit_after: int = 0  # and at its end
    failed_on: str | None = None  # the host whose processes failed first, where it may be the host's doing


def only_export(path: Path) -> str:
    """What there is to do with a run that is trained and has no export."""
    return f"all steps are done and saved; final/ alone is missing: distft resume {path}, or distft export {path} OUT"


def new_id() -> str:
    return secrets.token_hex(8)


def new_wandb_id() -> str:
    return secrets.token_hex(4)


@dataclass
class Run:
    """The content of run.json."""

    name: str
    state: State = "new"
    reason: str | None = None  # why it is held
    trained: int = 0  # step of the checkpoint after which only the export is left; 0: steps are
    excluded: list[str] = field(default_factory=list)  # hosts that the scheduler was asked not to use again
    launcher: str = "local"  # who started it last
    id: str = ""  # the run, wherever it is moved to; a copy gets another
    home: str | None = None  # the folder in which a command last found it
    inherited: int = 0  # attempts of the run that this one is a copy of; their jobs are not its own
    wandb_id: str = field(default_factory=new_wandb_id)
    created: float = field(default_factory=time.time)
    attempts: list[Attempt] = field(default_factory=list)


class RunDir:
    """Names of what is in a run folder, and the two files that describe it."""

    def __init__(self, path: Path) -> None:
        self.path = without_dots(path.absolute())
        self.config = self.path / "config.yaml"
        self.json = self.path / "run.json"
        self.reserve = self.path / "reserve"
        self.metrics = self.path / "metrics.jsonl"
        self.chart = self.path / "loss.png"
        self.logs = self.path / "logs"
        self.base = self.path / "base"
        self.hub = self.path / "hub.json"
        self.labels = self.path / "labels.json"
        self.packing = self.path / "packing.json"
        self.attention = self.path / "attention.json"
        self.batch = self.path / "batch.json"
        self.bad_records = self.path / "bad-records.jsonl"
        self.reference = self.path / "reference.safetensors"
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"
        self.evaluations = self.path / "evaluations"

    def exists(self) -> bool:
        return self.json.exists()

    def create(self, name: str, config: str) -> None:
        """Make the folder of a new run. `run.json` comes last: with it the run exists."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; give a folder (--run-dir)")
        if self.config.exists() and self.config.read_text(encoding="utf-8", errors="replace") != config:
            raise UserError(
                f"{self.config} exists but the folder holds no run; remove it, or give another folder with --run-dir"
            )
        for folder in (self.path, self.logs, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.config, config)
        keep_room(self.reserve)
        self.write(Run(name, id=new_id(), home=str(self.path)))

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
            raise UserError(f"{self.path} holds no run: it has no run.json") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{self.json} is damaged ({error}); restore it from a copy") from None

    def write(self, run: Run) -> None:
        """Write run.json; where no space is left, into that of the reserve."""
        text = json.dumps(dataclasses.asdict(run), indent=2) + "\n"
        try:
            write_atomically(self.json, text)
        except OSError as error:
            if not (no_space(error) and self.reserve.exists()):
                raise
            self.reserve.unlink()
            write_atomically(self.json, text)

    def records(self, lines: int | None = None) -> Iterator[dict[str, Any]]:
        """Objects of metrics.jsonl in the order written; a line cut off by a crash is passed over.

        Args:
            lines: how many lines to look at, from the first; default: all.
        """
        if not self.metrics.exists():
            return
        with open(self.metrics, encoding="utf-8", errors="replace", newline="\n") as file:
            yield from _objects(itertools.islice(file, lines))

    def newest_records(self) -> Iterator[dict[str, Any]]:
        """The same, the newest first; no more of the file is read than is asked for."""
        if self.metrics.exists():
            yield from _objects(line.decode(errors="replace") for line in lines_backwards(self.metrics))

    def lines(self) -> int:
        """Lines of metrics.jsonl, records or not."""
        if not self.metrics.exists():
            return 0
        with open(self.metrics, "rb") as file:
            return sum(1 for _ in file)

    def attempt_logs(self, number: int) -> Path:
        return self.logs / f"attempt-{number:03d}"

    def newest_commit(self) -> int:
        """Step of the newest checkpoint, verified or not; 0: there is none."""
        names = [path.name for path in self.checkpoints.glob("step-*")] if self.checkpoints.is_dir() else []
        return max((int(name[5:]) for name in names if re.fullmatch(r"step-\d{8,}", name)), default=0)


def _objects(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def without_dots(path: Path) -> Path:
    """A path without `..`: it would lead nowhere when a folder before it is removed. Other links keep their names; on
    a cluster /home may be one that is right on all nodes."""
    if ".." not in path.parts:
        return path
    short, real = os.path.normpath(path), os.path.realpath(path)
    return Path(short if os.path.realpath(short) == real else real)


def this_host() -> str:
    return socket.gethostname()
