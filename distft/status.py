"""How runs are doing, read from their folders alone."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distft.errors import UserError
from distft.recipe import load_resolved
from distft.rundir import Attempt, Run, RunDir

RECENT = 20  # steps over which the speed is averaged


@dataclass(frozen=True)
class Status:
    """What there is to know about a run without asking its processes."""

    run_dir: str
    name: str
    state: str
    step: int
    total_steps: int | None  # None: the recipe counts epochs and no step was recorded yet
    loss: float | None
    eval_loss: float | None
    useful_tokens_per_s: float | None
    eta_seconds: float | None
    attempts: list[Attempt]


def of(run: RunDir) -> Status:
    """The status of one run.

    Raises:
        UserError: the folder holds none.
    """
    content = run.read()
    steps: dict[int, dict[str, Any]] = {}
    eval_loss = None
    for record in run.records():
        if "loss" in record:
            steps[record["step"]] = record
        eval_loss = record.get("eval_loss", eval_loss)
    last = steps[max(steps)] if steps else {}
    recent = [steps[number] for number in sorted(steps)[-RECENT:]]
    seconds = sum(record["seconds"] for record in recent)
    total = total_steps(run, last)
    state: str = content.state
    if state == "running" and not alive(run, content):
        state = "lost"  # its processes are gone and could not say so; the same command continues it
    running = state == "running" and total is not None and recent
    return Status(
        run_dir=str(run.path),
        name=content.name,
        state=state,
        step=last.get("step", 0),
        total_steps=total,
        loss=last.get("loss"),
        eval_loss=eval_loss,
        useful_tokens_per_s=sum(r["useful_tokens_per_s"] * r["seconds"] for r in recent) / seconds if recent else None,
        eta_seconds=(total - last["step"]) * seconds / len(recent) if running and total is not None else None,
        attempts=content.attempts,
    )


def total_steps(run: RunDir, last: dict[str, Any]) -> int | None:
    train = load_resolved(run.config).train
    if train.steps is not None:
        return train.steps
    if not last or not last.get("epoch") or train.epochs is None:
        return None
    return round(train.epochs * float(last["step"]) / float(last["epoch"]))


def alive(run: RunDir, content: Run) -> bool:
    """Whether somebody holds the run's lock."""
    try:
        with run.lock():
            return False
    except (UserError, PermissionError):  # somebody else's run: their lock is not ours to try
        return True


def find(folders: list[Path]) -> list[RunDir]:
    """The runs named, or all below ./runs."""
    if folders:
        return [RunDir(folder) for folder in folders]
    return [RunDir(path.parent) for path in sorted(Path("runs").glob("*/run.json"))]


def as_json(statuses: list[Status]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(status) for status in statuses]


def show(statuses: list[Status]) -> None:
    """Tables for people."""
    console = Console(highlight=False)
    for status in statuses:
        of_total = f" of {status.total_steps}" if status.total_steps else ""
        parts = [
            f"[bold]{status.name}[/bold]",
            status.state,
            f"step {status.step}{of_total}",
            f"loss {status.loss:.4f}" if status.loss is not None else None,
            f"held-out loss {status.eval_loss:.4f}" if status.eval_loss is not None else None,
            f"{status.useful_tokens_per_s:,.0f} useful tokens/s" if status.useful_tokens_per_s else None,
            f"ETA {clock(status.eta_seconds)}" if status.eta_seconds is not None else None,
        ]
        console.print(" · ".join(part for part in parts if part))
        console.print(status.run_dir, style="dim", soft_wrap=True)
        if status.attempts:
            console.print(table(status.attempts))


def table(attempts: list[Attempt]) -> Table:
    result = Table("attempt", "hosts", "ranks", "ZeRO", "began", "took", "steps", "cause", box=None, header_style="dim")
    for attempt in attempts:
        steps = f"{attempt.first_step}-{attempt.last_step}" if attempt.first_step is not None else "-"
        took = clock((attempt.end or time.time()) - attempt.start)
        result.add_row(
            str(attempt.number),
            ",".join(attempt.hosts),
            str(attempt.world_size),
            str(attempt.zero_stage),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.start)),
            took,
            steps,
            attempt.cause or "-",
        )
    return result


def clock(seconds: float) -> str:
    """Like 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
