"""Finds run folders for commands that look at many: those named, and those anywhere below a folder."""

from __future__ import annotations

import os
from pathlib import Path

from distft.run.folder import RunDir

DEFAULT = Path("runs")


def find(folders: list[Path]) -> tuple[list[RunDir], list[str]]:
    """The runs that are, or are below, the folders named, by default ./runs; and what could not be searched.

    A folder named that has no run is returned as one, and says so when it is read.
    """
    found: dict[Path, RunDir] = {}
    unread: list[str] = []
    for folder in folders or [DEFAULT]:
        runs = below(folder, unread)
        if not runs and folders:
            runs = [RunDir(folder)]
        found |= {run.path: run for run in runs}
    return list(found.values()), unread


def below(top: Path, unread: list[str]) -> list[RunDir]:
    """The runs in a folder, in order of their paths; it may be one itself. Links are not followed, but one to a run is
    one; hidden folders are not searched; those that cannot be read are added to `unread`, a sentence each."""

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            unread.append(f"{error.filename} cannot be searched for runs: {(error.strerror or 'refused').lower()}")

    found, links = [], []
    for folder, inside, files in os.walk(top, onerror=note):
        if "run.json" in files:
            found.append(RunDir(Path(folder)))
            inside.clear()
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        paths = [Path(folder, name) for name in inside]
        links += [path for path in paths if path.is_symlink() and os.path.exists(path / "run.json")]
    here = {run.path.resolve() for run in found}
    found += [RunDir(link) for link in links if link.resolve() not in here]
    return sorted(found, key=lambda run: run.path)
