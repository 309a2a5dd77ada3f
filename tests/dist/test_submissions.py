"""`distft submit` as a program, beside another one or interrupted, while SLURM is slow (a script stands for it)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from distft.process.interpreter import running
from distft.recipe.load import dump
from distft.run.folder import RunDir
from launchers.slurm.jobs import jobs_of
from tests.unit.launchers.test_slurm_submit import Slurm, job, slurm

__all__ = ["slurm"]  # the fixture


def command(folder: Path, name: str = "run") -> subprocess.Popen[str]:
    """`distft submit` as a program, in a process group of its own."""
    wanted = job(folder, name)
    assert wanted.recipe is not None
    (folder / "recipe.yaml").write_text(dump(wanted.recipe))
    arguments = [str(folder / "recipe.yaml"), "--run-dir", str(folder / name), "--site", str(folder / "s.toml")]
    return subprocess.Popen(
        [sys.executable, *running("distft", "submit", *arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_of_two_submits_at_once_one_sends_a_job(slurm: Slurm, tmp_path: Path) -> None:
    (slurm.folder / "slow").write_text("2")
    both = [command(tmp_path), command(tmp_path)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    refused = said[[process.returncode for process in both].index(2)]
    assert f"distft: error: job 7 of {tmp_path / 'run'} is pending already" in refused
    assert "Traceback" not in "".join(said)
    assert [line.split("|")[0] for line in slurm.queue()] == ["7"]
    assert [sent.job for sent in jobs_of(RunDir(tmp_path / "run"))] == ["7"]


def test_ctrl_c_while_sbatch_is_slow_waits_until_the_job_is_written_down(slurm: Slurm, tmp_path: Path) -> None:
    (slurm.folder / "slow").write_text("2")
    process = command(tmp_path)
    deadline = time.monotonic() + 60
    while not (slurm.folder / "began").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "job 7 submitted" in said
    assert [line.split("|")[0] for line in slurm.queue()] == ["7"]
    assert [sent.job for sent in jobs_of(RunDir(tmp_path / "run"))] == ["7"]
