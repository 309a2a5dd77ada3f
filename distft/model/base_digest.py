"""The digest of a base model's files: computed by all ranks together, once, and remembered beside the model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distft.checkpoint.disk import checksum
from distft.errors import Preempted
from distft.process import distributed, pulse, stop_signals
from distft.process.distributed import Ranks
from distft.run.digest import of_parts
from distft.run.files import write_atomically

MEMORY = (
    "distft-checksums.json"  # beside the model: the checksum of each of its files, and what it was when it was read
)


def digest(folder: Path, ranks: Ranks | None = None) -> str:
    """sha256 over names and checksums of the files that make a base model: weights and config.json, in order.

    Args:
        ranks: who share the reading, a file each at a time; all of them call this. None: this process alone.

    Raises:
        Preempted: a stop was requested of any of them; what was found until then is remembered.
    """
    files = sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin") or p.name == "config.json")
    known = _agreed(ranks, lambda: remembered(folder, files))
    lacking = sorted((path for path in files if path.name not in known), key=lambda path: -path.stat().st_size)
    rank, world = (0, 1) if ranks is None else (ranks.rank, ranks.world)
    while lacking:
        round_of_files, lacking = lacking[:world], lacking[world:]
        pulse.at("the checksums of the base model")
        mine = {path.name: [*signature(path), checksum(path)] for path in round_of_files[rank : rank + 1]}
        stopped = stop_signals.requested()
        texts = [json.dumps([mine, stopped])]
        for found, stops in map(json.loads, texts if ranks is None else distributed.gather_text(texts[0])):
            known.update(found)
            stopped = stopped or stops
        if rank == 0:
            remember(folder, known)
        if stopped:
            stop_signals.check()
            raise Preempted("another rank received a stop request")
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.name} {known[path.name][-1]}\n".encode())
    return whole.hexdigest()


def _agreed(ranks: Ranks | None, look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = look() if ranks is None else distributed.on_rank_0(ranks, "checksums remembered", look)
    return found


def signature(path: Path) -> list[int]:
    """What changes when a file does: size and times. The time of change tells a copy from what it is a copy of."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def remembered(folder: Path, files: Sequence[Path]) -> dict[str, list[Any]]:
    """By the names of those files that are as they were: their signature and checksum."""
    found: dict[str, list[Any]] = {}
    for memory in reversed(places(folder)):
        with suppress(OSError, ValueError, AttributeError):
            entries = json.loads(memory.read_text(encoding="utf-8"))
            for path in files:
                entry = entries.get(path.name)
                if isinstance(entry, list) and entry[:-1] == signature(path):
                    found[path.name] = [*entry[:-1], str(entry[-1])]
    return found


def remember(folder: Path, known: dict[str, list[Any]]) -> None:
    """In the first place that can be written."""
    for memory in places(folder):
        with suppress(OSError):  # an economy only
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(memory, json.dumps(known, indent=1) + "\n")
            return


def places(folder: Path) -> tuple[Path, Path]:
    """Beside the model, and where that folder cannot be written, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distft"
    return folder / MEMORY, cache / "models" / f"{of_parts(str(folder.absolute()))[:32]}.json"
