"""A SLURM of four nodes on this machine, for all tests of this folder. Skipped where it cannot run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.scenario import DEVCLUSTER, Cluster, environment


def start(*options: str) -> None:
    done = subprocess.run([DEVCLUSTER, "up", *options], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip() or done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Where every node and every user can write; a path that SLURM takes."""
    path = Path("/var/tmp/distft-cluster-tests")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755)
    yield path
    if not os.environ.get("DISTFT_KEEP"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[Cluster]:
    start()
    yield Cluster(folder, environment(folder))
    subprocess.run([DEVCLUSTER, "down"], capture_output=True, timeout=120, check=False)


@pytest.fixture
def another_user() -> Iterator[str]:
    name = "distft-tester"
    subprocess.run(["userdel", name], capture_output=True, check=False)
    subprocess.run(["useradd", "--no-create-home", name], capture_output=True, check=True)
    yield name
    subprocess.run(["userdel", name], capture_output=True, check=False)
