"""A SLURM of four nodes on this machine, for all tests of this folder. Skipped where it cannot run.

DISTFT_CLUSTER_PASSED names a file: tests that have passed on this commit are not run again, so that a run that was
broken off is continued. Each line has the seconds of a test.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.scenario import DEVCLUSTER, ROOT, Cluster, environment


def commit() -> str | None:
    """None where files differ from what is committed: nothing is known of such a tree."""
    said = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=False)
    if said.returncode or said.stdout.strip():
        return None
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    memory, now = os.environ.get("DISTFT_CLUSTER_PASSED"), commit()
    if memory is None or now is None or not Path(memory).exists():
        return
    lines = [json.loads(line) for line in Path(memory).read_text().splitlines()]
    passed = {line["test"] for line in lines if line["commit"] == now}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    memory, now = os.environ.get("DISTFT_CLUSTER_PASSED"), commit()
    if memory is None or now is None or report.when != "call" or not report.passed:
        return
    Path(memory).parent.mkdir(parents=True, exist_ok=True)
    with open(memory, "a") as file:
        file.write(json.dumps({"test": report.nodeid, "seconds": round(report.duration, 1), "commit": now}) + "\n")


def start(*options: str) -> None:
    done = subprocess.run([DEVCLUSTER, "up", *options], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip() or done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Where every node and every user can write; a path that SLURM takes."""
    path = Path("/var/tmp/distft-cluster-tests")
    if path.exists():  # of a session that was killed: its nodes still see it
        subprocess.run([DEVCLUSTER, "down"], capture_output=True, timeout=120, check=False)
        subprocess.run(["umount", path / "small"], capture_output=True, check=False)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o755)
    yield path
    if not os.environ.get("DISTFT_KEEP"):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(folder: Path) -> Iterator[Cluster]:
    small = folder / "small"  # a file system that a test can fill; nodes see what was mounted before they were booted
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", small], capture_output=True, check=False
    )
    start()
    yield Cluster(folder, environment(folder))
    subprocess.run([DEVCLUSTER, "down"], capture_output=True, timeout=120, check=False)
    if mounted.returncode == 0:
        subprocess.run(["umount", small], check=True)


@pytest.fixture
def another_user() -> Iterator[str]:
    name = "distft-tester"
    subprocess.run(["userdel", name], capture_output=True, check=False)
    subprocess.run(["useradd", "--no-create-home", name], capture_output=True, check=True)
    yield name
    subprocess.run(["userdel", name], capture_output=True, check=False)
