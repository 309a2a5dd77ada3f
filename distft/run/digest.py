"""SHA-256 digests, cached for large files by their size and times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from distft.run.files import write_atomically


def of_parts(*parts: Any) -> str:
    """sha256 (hex) over values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def remembered(files: Sequence[Path], memory: Path, compute: Callable[[], str]) -> str:
    """What `compute` returns for these files; from `memory` where name, size and time of each are as they were.

    So tens of gigabytes are read once and not in every attempt.
    """
    signature = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["files"] == signature:
            return str(known["sha256"])
    digest = compute()
    with suppress(OSError):  # an economy only
        write_atomically(memory, json.dumps({"files": signature, "sha256": digest}, indent=1))
    return digest
