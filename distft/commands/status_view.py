"""How `distft status` shows runs on a terminal: a line for each of several, everything about one; again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from distft.commands.status import Status, all_statuses
from distft.run.folder import Attempt

WATCH_SECONDS = 3.0
ANY_WIDTH = 1000  # nothing is cut or folded; a terminal does that itself


def watch(folders: list[Path], details: bool) -> None:
    """What `show` shows, again and again, until Ctrl-C."""
    try:
        with Live("looking at the runs ...", console=Console(highlight=False), auto_refresh=False) as live:
            live.refresh()
            while True:
                statuses, broken = all_statuses(folders)
                live.update(Group(*parts(statuses, folders, details), *map(escape, broken)), refresh=True)
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return


def show(statuses: list[Status], folders: list[Path], details: bool) -> None:
    """Everything about a run that was named alone, or about all with `details`; else a line for each."""
    terminal = Console(highlight=False)
    fits = terminal.is_terminal and in_full(statuses, folders, details)
    printer = terminal if fits else Console(highlight=False, width=ANY_WIDTH)
    for part in parts(statuses, folders, details):
        printer.print(part, soft_wrap=not isinstance(part, Table))


def in_full(statuses: list[Status], folders: list[Path], details: bool) -> bool:
    alone = len(folders) == 1 and [status.run_dir for status in statuses] == [str(folders[0].absolute())]
    return details or alone


def parts(statuses: list[Status], folders: list[Path], details: bool) -> Iterator[str | Table]:
    if in_full(statuses, folders, details):
        for status in statuses:
            yield from everything(status)
    elif statuses:
        yield a_line_each(statuses)


def a_line_each(statuses: list[Status]) -> Table:
    """Where it is too narrow, the folder is cut."""
    result = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("name", "state", "step", "loss", "held-out", "tokens/s", "ETA", "job"):
        result.add_column(heading, justify="left" if heading in ("name", "state", "job") else "right", no_wrap=True)
    result.add_column("folder")
    for status in statuses:
        result.add_row(
            escape(status.name),
            status.state,
            f"{status.step} of {status.total_steps}" if status.total_steps else str(status.step),
            f"{status.loss:.4f}" if status.loss is not None else "-",
            f"{status.eval_loss:.4f}" if status.eval_loss is not None else "-",
            f"{status.useful_tokens_per_s:,.0f}" if status.useful_tokens_per_s else "-",
            clock(status.eta_seconds) if status.eta_seconds is not None else "-",
            escape(job_of(status)),
            Text(from_here(status.run_dir), no_wrap=True, overflow="ellipsis"),
        )
    return result


def job_of(status: Status) -> str:
    """Its job in a few words. What nobody can say is said."""
    if status.job is None:
        return "-"
    said = status.job.detail.partition(";")[0] if status.job.state == "unknown" else status.job.state
    return f"{status.job.job} {said}".strip()


def from_here(folder: str) -> str:
    """A path below this folder without it."""
    here = os.getcwd()
    return os.path.relpath(folder, here) if Path(folder).is_relative_to(here) else folder


def everything(status: Status) -> Iterator[str | Table]:
    """What there is to see of one run."""
    of_total = f" of {status.total_steps}" if status.total_steps else ""
    parts = [
        f"[bold]{escape(status.name)}[/bold]",
        status.state,
        f"step {status.step}{of_total}",
        f"loss {status.loss:.4f}" if status.loss is not None else None,
        f"held-out loss {status.eval_loss:.4f}" if status.eval_loss is not None else None,
        f"{status.useful_tokens_per_s:,.0f} useful tokens/s" if status.useful_tokens_per_s else None,
        f"MFU {status.mfu:.1%}" if status.mfu is not None else None,
        memory_of(status),
        f"ETA {clock(status.eta_seconds)}" if status.eta_seconds is not None else None,
    ]
    yield " · ".join(part for part in parts if part)
    yield f"[dim]{escape(status.run_dir)}[/dim]"
    if status.reason:
        yield f"{status.state}: {escape(status.reason)}"
    if status.excluded:
        yield f"excluded nodes (attempts failed there twice): {escape(', '.join(status.excluded))}"
    if status.job is not None:
        name = f"job {status.job.job}" if status.job.job else "its job"
        yield escape(f"{name}: {status.job.state}" + (f", {status.job.detail}" if status.job.detail else ""))
        if status.job.state == "gone" and status.state != "done" and os.access(status.run_dir, os.W_OK):
            yield f"continue it with: distft resume {escape(status.run_dir)}"
    if status.attempts:
        yield table(status.attempts)


def memory_of(status: Status) -> str | None:
    """Of the rank that needs most."""
    if status.memory_bytes is None:
        return None
    return f"memory {status.memory_bytes / 2**30:.1f} GiB (rank {status.memory_rank})"


def table(attempts: list[Attempt]) -> Table:
    result = Table("attempt", "hosts", "ranks", "ZeRO", "began", "took", "steps", "cause", box=None, header_style="dim")
    for attempt in attempts:
        began = bool(attempt.hosts)  # of a start that failed before, only its end is known
        steps = f"{attempt.first_step}-{attempt.last_step}" if attempt.first_step is not None else "-"
        result.add_row(
            str(attempt.number),
            escape(",".join(attempt.hosts)) if began else "-",
            str(attempt.world_size) if began else "-",
            str(attempt.zero_stage) if began else "-",
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.start)),
            clock((attempt.end or time.time()) - attempt.start),
            steps,
            escape(attempt.cause or "-"),
        )
    return result


def clock(seconds: float) -> str:
    """Like 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
