"""The interface of launchers. They are separate packages, found by name through an entry point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from distft import plugins
from distft.plan.place import Place
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.run.profile import Wanted

HERE, CLUSTER = "local", "slurm"  # the launchers of `train` and, unless another is named, of `submit`
Mode = Literal["run", "prepare", "show", "check"]
"""Start it; only make the run folder; show what would be sent; send a short job that looks around."""

JobState = Literal["pending", "held", "blocked", "starting", "running", "suspended", "ending", "gone", "unknown"]
"""Held: waits until somebody releases it; blocked: will never start; unknown: nobody can say."""


@dataclass(frozen=True)
class Resources:
    """What a job is to have. None: what the site says; of `nproc`: one rank a GPU, or one where there is none."""

    nodes: int | None = None
    nproc: int | None = None  # ranks a node
    time: str | None = None  # limit, in the scheduler's form
    site: str | None = None  # profile of the cluster: a name or a file
    max_restarts: int | None = None  # of the ranks within an allocation
    after: Path | None = None  # run folder of a run that must finish first


@dataclass(frozen=True)
class Job:
    """One attempt to bring a run forward. `recipe` None: the one already in the run folder."""

    run_dir: Path
    recipe: Recipe | None = None
    resources: Resources = field(default_factory=Resources)
    mode: Mode = "run"
    allow: frozenset[str] = frozenset()  # what may differ from the attempts before (`distft.recipe.changes`)
    launcher: str = HERE  # the name under which the launcher was found; run.json keeps it
    anyway: bool = False  # send it although the plan says that it cannot fit
    profile: Wanted | None = None  # of its attempts


@dataclass(frozen=True)
class Outlook:
    """What a scheduler knows about a run."""

    job: str
    state: JobState
    detail: str  # why it waits, where it runs, what is not known
    cancelled: bool = False
    causes: dict[int, str] = field(default_factory=dict)  # by number of attempt, where run.json has no answer


class Launcher(Protocol):
    """Puts the processes of a job on machines; each of them runs `distft train --run-dir DIR`."""

    def launch(self, job: Job) -> int:
        """Run a job, or send it. Returns an exit code (`distft.errors`)."""

    def place(self, job: Job) -> Place:
        """Where a job would run. Nothing is started, written or printed."""

    def outlooks(self, runs: Sequence[RunDir]) -> list[Outlook | None]:
        """What is known of each run beyond its folder; None: nothing. All at once, so that one question is enough."""

    def cancel(self, run: RunDir) -> str:
        """End what runs or waits, and do not start it again. Returns what was done, in words."""


def find_launcher(name: str) -> Launcher:
    """The launcher of that name among all installed packages.

    Raises:
        UserError: none has that name, or two packages have one.
    """
    launcher: Launcher = plugins.find(plugins.LAUNCHERS, name, "launcher")()
    return launcher
