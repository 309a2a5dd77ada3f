"""What goes wrong around a run: a W&B that answers nothing, a clock that is set, a folder that is read-only or gone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.command import EVERY, STEPS, Workplace, about, checkpoints, losses, until, until_step
from tests.e2e.conftest import Made

KEY = "0123456789abcdef0123456789abcdef01234567"
CLOCK = """\
import time
_time = time.time
def shifted():
    try:
        with open({path!r}) as file:
            return _time() + float(file.read() or 0)
    except OSError:
        return _time()
time.time = shifted
"""


@pytest.fixture
def silence() -> Iterator[str]:
    """A host that takes connections, or packets only, and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.long
def test_a_wandb_host_that_swallows_packets_changes_nothing(place: Workplace, unbroken: Made, silence: str) -> None:
    run = place.folder / "silence"
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", "track.wandb=online", "--run-dir", run, "--nproc", "2")
    environment = {"WANDB_BASE_URL": silence, "WANDB_API_KEY": KEY}
    with place.start(*command, environment=environment) as only:
        until_step(only, run, STEPS)
        ended = only.end(60.0)
    until(lambda: not any(belongs_to(process, run) for process in psutil.process_iter()), "all have ended", 20.0)
    assert ended.code == 0, ended.err
    assert losses(run) == losses(unbroken.run)
    assert KEY not in ended.out + ended.err
    holding = [path for path in run.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holding == []


def belongs_to(process: psutil.Process, run: Path) -> bool:
    try:
        return any(str(run) in word for word in process.cmdline()) or str(run) in process.cwd()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@pytest.mark.long
def test_a_clock_that_is_set_changes_nothing(place: Workplace, unbroken: Made) -> None:
    """An hour ahead in the middle of a run, then two hours back, in all of its processes."""
    run, folder, shift = place.folder / "clock", place.folder / "shifted", place.folder / "shift"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(CLOCK.format(path=str(shift)))
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2")
    with place.start(*command, environment={"PYTHONPATH": str(folder)}) as only:
        until_step(only, run, EVERY + 2)
        shift.write_text("3600")
        until_step(only, run, 2 * EVERY + 2)
        shift.write_text("-3600")
        refused = place.run(*command)
        ended = only.end()
    assert ended.code == 0, ended.err
    assert refused.code == 2
    assert "is in use by process" in refused.sentence
    assert losses(run) == losses(unbroken.run)
    assert len(about(run)["attempts"]) == 1


def test_a_folder_that_may_only_be_read(place: Workplace, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    mounted = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(tmp_path)]
    if (done := subprocess.run(mounted, capture_output=True, text=True)).returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        ended = place.run("train", "recipe.yaml", "--run-dir", tmp_path / "run", "--nproc", "1")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert ended.code == 2
    assert str(tmp_path) in ended.sentence
    assert "read-only" in ended.sentence.lower()


def test_a_run_folder_that_vanishes_and_comes_back(place: Workplace, unbroken: Made) -> None:
    run, away = place.folder / "vanishing", place.folder / "elsewhere"
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2")
    with place.start(*command) as first:
        until_step(first, run, EVERY + 5)
        shutil.move(run, away)
        ended = first.end(60.0)
    assert ended.code == 1
    assert ended.sentence == f"{run} has disappeared; restore it and run the same command again"
    shutil.rmtree(run, ignore_errors=True)
    shutil.move(away, run)
    assert checkpoints(run)
    assert place.run(*command).code == 0
    assert {step: set(values) for step, values in losses(run).items()} == {
        step: set(values) for step, values in losses(unbroken.run).items()
    }


def test_files_named_like_modules_beside_the_recipe_are_not_imported(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    for name in ("queue", "random", "datasets", "launchers"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('this is the {name}.py of the current folder')\n")
    ended = place.run("train", "recipe.yaml", "train.steps=2", "--run-dir", "run")
    assert ended.code == 0, ended.err
    assert list(losses(tmp_path / "run")) == [1, 2]
