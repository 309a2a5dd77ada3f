"""`distft status`: the state of runs, read from their folders alone."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from distft.commands.run_search import find
from distft.errors import UserError
from distft.launcher import Outlook, find_launcher
from distft.recipe.load import load_resolved
from distft.run import lease
from distft.run.folder import Attempt, Run, RunDir

WATCH_SECONDS = 3.0
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
    reason: str | None  # why it is held
    excluded: list[str]  # hosts on which attempts failed twice
    job: Outlook | None  # what its scheduler says


def status_of(run: RunDir) -> Status:
    """The status of one run.

    Raises:
        UserError: the folder holds none.
    """
    content = run.read()
    outlook = find_launcher(content.launcher).outlook(run) if content.state != "done" else None
    recent: list[dict[str, Any]] = []  # as they were recorded: an attempt may train steps again that were lost
    eval_loss = None
    for record in run.records():
        if "loss" in record:
            recent = [*recent, record][-RECENT:]
        eval_loss = record.get("eval_loss", eval_loss)
    last = recent[-1] if recent else {}
    seconds = sum(record["seconds"] for record in recent)
    total = total_steps(run, last)
    state = state_of(run, content, outlook)
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
        attempts=[
            dataclasses.replace(
                attempt, cause=outlook.causes.get(attempt.number, attempt.cause) if outlook else attempt.cause
            )
            for attempt in content.attempts
        ],
        reason=content.reason,
        excluded=content.excluded,
        job=outlook,
    )


def state_of(run: RunDir, content: Run, outlook: Outlook | None) -> str:
    """The state in run.json, unless its processes are gone and could not say so, or its scheduler knows better."""
    if content.state == "done" or (outlook is None and content.state == "running" and lease.alive(run)):
        return content.state
    if outlook is not None:
        if outlook.state == "pending":
            return "queued"
        if outlook.state in ("running", "ending", "unknown") and lease.alive(run):
            return "running" if outlook.state != "ending" else "ending"
        if outlook.state == "running":
            return "starting"
        if outlook.state == "gone" and outlook.cancelled:
            return "cancelled"
    # lost: the same command continues it
    return "lost" if content.state == "running" else content.state


def total_steps(run: RunDir, last: dict[str, Any]) -> int | None:
    train = load_resolved(run.config).train
    if train.steps is not None:
        return train.steps
    if not last or not last.get("epoch") or train.epochs is None:
        return None
    rows = round(int(last["step"]) * train.global_batch / float(last["epoch"]))
    return math.ceil(max(1, round(train.epochs * rows)) / train.global_batch)  # as feed.length counts them


def all_statuses(folders: list[Path]) -> tuple[list[Status], list[str]]:
    """The status of each run that is, or is below, one of the folders, by default ./runs; and what is wrong with runs
    that nobody named.

    Raises:
        UserError: something is wrong with a run that was named.
    """
    runs, broken = find(folders)
    named = {folder.absolute() for folder in folders}
    statuses: list[Status] = []
    for run in runs:
        try:
            statuses.append(status_of(run))
        except UserError as error:
            if run.path in named:
                raise
            broken.append(str(error))
    return statuses, broken


def as_json(statuses: list[Status]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(status) for status in statuses]


def watch(folders: list[Path]) -> None:
    """The same, again and again, until Ctrl-C."""
    console = Console(highlight=False)
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                statuses, broken = all_statuses(folders)
                live.update(
                    Group(*(part for status in statuses for part in lines(status)), *map(escape, broken)), refresh=True
                )
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def show_tables(statuses: list[Status]) -> None:
    """Tables for people."""
    console = Console(highlight=False)
    for status in statuses:
        for part in lines(status):
            console.print(part, soft_wrap=not isinstance(part, Table))


def lines(status: Status) -> Iterator[str | Table]:
    """What there is to see of one run."""
    of_total = f" of {status.total_steps}" if status.total_steps else ""
    parts = [
        f"[bold]{escape(status.name)}[/bold]",
        status.state,
        f"step {status.step}{of_total}",
        f"loss {status.loss:.4f}" if status.loss is not None else None,
        f"held-out loss {status.eval_loss:.4f}" if status.eval_loss is not None else None,
        f"{status.useful_tokens_per_s:,.0f} useful tokens/s" if status.useful_tokens_per_s else None,
        f"ETA {clock(status.eta_seconds)}" if status.eta_seconds is not None else None,
    ]
    yield " · ".join(part for part in parts if part)
    yield f"[dim]{escape(status.run_dir)}[/dim]"
    if status.reason:
        yield f"held: {escape(status.reason)}"
    if status.excluded:
        yield f"excluded nodes (attempts failed there twice): {escape(', '.join(status.excluded))}"
    if status.job is not None:
        yield escape(
            f"job {status.job.job}: {status.job.state}" + (f", {status.job.detail}" if status.job.detail else "")
        )
        if status.job.state == "gone" and status.state != "done":
            yield f"continue it with: distft resume {escape(status.run_dir)}"
    if status.attempts:
        yield table(status.attempts)


def table(attempts: list[Attempt]) -> Table:
    result = Table("attempt", "hosts", "ranks", "ZeRO", "began", "took", "steps", "cause", box=None, header_style="dim")
    for attempt in attempts:
        steps = f"{attempt.first_step}-{attempt.last_step}" if attempt.first_step is not None else "-"
        took = clock((attempt.end or time.time()) - attempt.start)
        result.add_row(
            str(attempt.number),
            escape(",".join(attempt.hosts)),
            str(attempt.world_size),
            str(attempt.zero_stage),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.start)),
            took,
            steps,
            escape(attempt.cause or "-"),
        )
    return result


def clock(seconds: float) -> str:
    """Like 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
