"""What a launcher is given and what it must do. Launchers live outside `distft` and are found by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from distft.config import Recipe
from distft.errors import UserError

ENTRY_POINTS = "distft.launchers"


@dataclass(frozen=True)
class Resources:
    """Processes wanted. `nproc` None: one a GPU of the node, or one where there is none."""

    nodes: int = 1
    nproc: int | None = None


@dataclass(frozen=True)
class Job:
    """One attempt to bring a run forward. `recipe` None: the one already in the run folder."""

    run_dir: Path
    recipe: Recipe | None = None
    resources: Resources = field(default_factory=Resources)


class Launcher(Protocol):
    """Puts the processes of a job on machines; each of them runs `distft train --run-dir DIR`."""

    def launch(self, job: Job) -> int:
        """Returns the exit code of the attempt (`distft.errors`)."""


def find_launcher(name: str) -> Launcher:
    """The launcher of that name among all installed packages.

    Raises:
        UserError: none has that name.
    """
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name not in found:
        raise UserError(f"no launcher is called '{name}'; installed: {', '.join(sorted(found)) or 'none'}")
    launcher: Launcher = found[name].load()()
    return launcher
