"""The content of data files, as a digest."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from distft.errors import UserError
from distft.process import pulse
from distft.run.digest import remembered

_CHUNK = 1 << 20  # bytes


def digest(path: Path, memory: Path | None) -> str:
    """sha256 (hex) of the bytes of a file, or of a folder's files and their names."""
    path = path.absolute()
    # `datasets` may leave cache-*.arrow files of its own in such a folder.
    inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("cache-"))
    files = inside if path.is_dir() else [path]

    def compute() -> str:
        found = hashlib.sha256()
        for file in files:
            if file != path:
                found.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
            _add(file, found)
        return found.hexdigest()

    if memory is None:
        return compute()
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    return remembered(files, memory / f"source-{name}.json", compute)


def _add(path: Path, found: Any) -> None:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                pulse.moving()
                found.update(chunk)
    except OSError as error:
        raise UserError(f"cannot read data file {path}: {error.strerror}") from error
