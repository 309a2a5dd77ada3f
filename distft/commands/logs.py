"""`distft logs`: print the log of a rank, and follow it."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from distft.errors import UserError
from distft.run import lease
from distft.run.folder import RunDir

POLL_SECONDS = 0.5
ENDED = ("done", "trained", "failed", "held", "cancelled")  # states of a run after which no attempt may follow


def attempts(run: RunDir) -> list[int]:
    """Numbers of the attempts that left logs, in order."""
    found = (re.fullmatch(r"attempt-(\d+)", path.name) for path in run.logs.glob("attempt-*") if path.is_dir())
    return sorted(int(name.group(1)) for name in found if name)


def log_of(run: RunDir, attempt: int | None, rank: int) -> Path:
    """The log of a rank in an attempt; None: the newest in which it has one. One that only exports has no ranks.

    Raises:
        UserError: there is no such log; the message names those there are.
    """
    run.read()
    known = attempts(run)
    if not known:
        raise UserError(f"{run.path} has no logs yet: it has not run")
    wanted = [attempt] if attempt is not None else list(reversed(known))
    paths = [run.attempt_logs(number) / f"rank-{rank}.log" for number in wanted]
    if (found := next((path for path in paths if path.exists()), None)) is not None:
        return found
    if attempt is not None and attempt not in known:
        raise UserError(f"{run.path} has no attempt {attempt}; its attempts are {known[0]} to {known[-1]}")
    ranks = sorted({int(one.stem.rpartition("-")[2]) for path in paths for one in path.parent.glob("rank-*.log")})
    raise UserError(f"no {paths[0]}; ranks with a log: {', '.join(map(str, ranks)) or 'none'}")


def print_log(run: RunDir, attempt: int | None, rank: int, follow: bool) -> None:
    """Print a log. With `follow` until the attempt, or the run where none was named, has ended."""
    path = log_of(run, attempt, rank)
    for text in following(run, path, attempt, rank) if follow else [path.read_text(errors="replace")]:
        sys.stdout.write(text)
        sys.stdout.flush()


def following(run: RunDir, path: Path, attempt: int | None, rank: int) -> Iterator[str]:
    while True:
        yield from growing(run, path)
        if attempt is not None or run.read().state in ENDED:
            return
        while True:  # between two attempts
            time.sleep(POLL_SECONDS)
            if (newer := run.attempt_logs(attempts(run)[-1]) / f"rank-{rank}.log") != path and newer.exists():
                path = newer
                yield f"--- {path}\n"
                break
            if run.read().state in ENDED:
                return


def growing(run: RunDir, path: Path) -> Iterator[str]:
    """What is in the file and what is added, until its attempt has ended."""
    number = int(path.parent.name.rpartition("-")[2])
    with open(path, encoding="utf-8", errors="replace") as file:
        while True:
            ended = any(a.number == number and a.end is not None for a in run.read().attempts) or not lease.alive(run)
            while text := file.read(1 << 16):
                yield text
            if ended:
                return
            time.sleep(POLL_SECONDS)
