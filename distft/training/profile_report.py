"""The report of a profile: each rank reads its trace, all learn who waited for whom, and rank 0 writes it down."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distft.commands import profile as view
from distft.errors import first_line
from distft.process import distributed, pulse
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.run import profile
from distft.run.files import write_atomically
from distft.run.folder import RunDir, this_host
from distft.training.step_parts import Parts, parts_of
from distft.training.trace import read_trace

_FLAW = "flaw: "


@dataclass(frozen=True)
class Taken:
    """What one rank has measured.

    Attributes:
        seconds: of all steps, by the clock.
        memory: peak bytes by phase.
        keeps_trace: whether the trace of torch stays in the logs.
    """

    run: RunDir
    attempt: int
    first_step: int
    steps: int
    seconds: float
    memory: Mapping[str, int]
    keeps_trace: bool


def report(taken: Taken, profiler: torch.profiler.profile, ranks: Ranks, console: Console) -> None:
    """Collective. A profile that cannot be read or written is one sentence; training goes on."""
    try:
        parts: Parts | None = _read(taken, profiler, ranks)
        said = parts.digest if parts is not None else ""
    except (OSError, ValueError, RuntimeError, LookupError, MemoryError) as error:
        parts, said = None, _FLAW + first_line(error)
    everyone = distributed.gather_text(said)
    flawed = [(rank, one) for rank, one in enumerate(everyone) if one.startswith(_FLAW)]
    if flawed:
        rank, flaw = flawed[0]
        console.say(f"there is no profile: rank {rank}: {flaw.removeprefix(_FLAW)}")
        return
    assert parts is not None
    compared = len(set(everyone)) == 1
    if compared and parts.collectives:
        seconds = parts.seconds
        least = distributed.least_over_ranks([one.seconds for one in parts.collectives])
        seconds[profile.WAITING] = min(parts.waited(least), seconds[profile.COMMUNICATION])
        seconds[profile.COMMUNICATION] -= seconds[profile.WAITING]
    mine = {
        "rank": ranks.rank,
        "host": this_host(),
        "seconds": taken.seconds,
        "parts": parts.seconds,
        "host_waits": parts.host_waits,
        "memory": dict(taken.memory),
    }
    found = [json.loads(text) for text in distributed.gather_text(json.dumps(mine))]
    if ranks.first:
        _write(taken, ranks.device.type, compared, found, console)


def _read(taken: Taken, profiler: torch.profiler.profile, ranks: Ranks) -> Parts:
    profiler.stop()
    pulse.moving()
    logs = taken.run.attempt_logs(taken.attempt)
    if not taken.keeps_trace:
        with tempfile.TemporaryDirectory(prefix="distft-") as folder:
            return _parts(profiler, Path(folder) / "trace.json")
    if ranks.device.type == "cuda":
        snapshot = str(logs / f"rank-{ranks.rank}.memory.pickle")
        torch.cuda.memory._dump_snapshot(snapshot)  # type: ignore[no-untyped-call]
        torch.cuda.memory._record_memory_history(enabled=None)
    return _parts(profiler, logs / f"rank-{ranks.rank}.trace.json.gz")


def _parts(profiler: torch.profiler.profile, path: Path) -> Parts:
    profiler.export_chrome_trace(str(path))
    pulse.moving()
    return parts_of(read_trace(path, pulse.moving))


def _write(taken: Taken, device: str, compared: bool, found: list[dict[str, Any]], console: Console) -> None:
    content = {
        "attempt": taken.attempt,
        "first_step": taken.first_step,
        "steps": taken.steps,
        "device": device,
        "compared": compared,
        "ranks": found,
    }
    content |= view.findings(content)
    console.say(view.text(content))
    path = profile.file_of(taken.run, taken.attempt)
    try:
        write_atomically(path, json.dumps(content, indent=1) + "\n")
        picture = view.draw(taken.run, content)
    except OSError as error:
        console.say(f"the profile could not be written: {error}")
        return
    console.say(f"profile: {path}, {picture}")
