"""Two real light parents on this machine, started as srun starts them, stand for two nodes; without SLURM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.e2e.command import START_SECONDS, Workplace

HOSTS = ("127.0.0.1", "localhost")


@dataclass
class Nodes:
    """The light parents of a job, by the index of their node."""

    parents: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def codes(self, seconds: float = START_SECONDS) -> list[int]:
        return [parent.wait(timeout=seconds) for parent in self.parents]

    def said(self, index: int) -> str:
        return self.logs[index].read_text()


@contextmanager
def two_nodes(place: Workplace, run: Path, *overrides: str, ranks: tuple[int, int] = (1, 1)) -> Iterator[Nodes]:
    """The first start of a job on two nodes, with so many ranks on each."""
    prepared = place.run("train", "recipe.yaml", *overrides, "--run-dir", run, "--prepare")
    assert prepared.code == 0, prepared.err
    with nodes_of(place, run, "launchers.slurm.node", ranks) as found:
        yield found


@contextmanager
def nodes_of(place: Workplace, run: Path, module: str, ranks: tuple[int, ...]) -> Iterator[Nodes]:
    """A program that srun starts once per node, with so many ranks on each."""
    found = Nodes([], [])
    with ExitStack() as stack:
        for index, number in enumerate(ranks):
            of_slurm = {"SLURM_JOB_ID": "7", "SLURM_NODEID": str(index)}
            of_script = {
                "DISTFT_RUN_DIR": str(run),
                "DISTFT_HOSTS": ",".join(HOSTS[: len(ranks)]),
                "DISTFT_RANKS": str(number),
            }
            found.logs.append(place.folder / f"{run.name}-node-{index}.txt")
            output = stack.enter_context(open(found.logs[-1], "wb"))
            parent = subprocess.Popen(
                [sys.executable, "-u", "-m", module],
                cwd=place.folder,
                env={**place.environment(), **of_slurm, **of_script, "DISTFT_MAX_RESTARTS": "0"},
                stdout=output,
                stderr=output,
            )
            stack.callback(parent.wait)
            stack.callback(parent.kill)
            found.parents.append(parent)
        yield found


def children(pid: int, name: str) -> list[psutil.Process]:
    try:
        return [child for child in psutil.Process(pid).children(recursive=True) if child.name() == name]
    except psutil.NoSuchProcess:
        return []
