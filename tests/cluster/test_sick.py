"""A cluster that is sick itself: a silent controller, a full disk, jobs sent from within jobs, and copies of runs."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.chaos.full_disk import drop_cut_lines
from tests.cluster.scenario import (
    AT,
    LONG_SECONDS,
    VARIANTS,
    Cluster,
    Run,
    as_if_nothing_had_happened,
    resumed,
    submitted,
)
from tests.e2e.command import about, until

pytestmark = pytest.mark.long

SILENT_SECONDS = 60


def asking(cluster: Cluster) -> Path:
    """A profile with which the first `scontrol show job` makes a folder `once`, and asks two seconds later."""
    folder = cluster.folder / "asking"
    folder.mkdir()
    (folder / "scontrol").write_text(
        f'#!/bin/sh\ncase "$*" in *"show job"*) mkdir {folder}/once 2>/dev/null && sleep 2 ;; esac\n'
        f'exec {shutil.which("scontrol")} "$@"\n'
    )
    (folder / "scontrol").chmod(0o755)
    profile = folder / "site.toml"
    profile.write_text(f"setup = ['export PATH={folder}:$PATH']\n{cluster.site('low').read_text()}")
    return profile


def test_a_controller_that_is_silent_for_a_minute_ends_no_job(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    [controller] = [process for process in psutil.process_iter() if process.name() == "slurmctld"]
    site = asking(cluster)
    run = cluster.submit("silent-controller", "lora-zero2", f"--site={site}")
    run.until_step(AT)
    cluster.call("scancel", "--signal=USR1", run.job)
    until(lambda: (site.parent / "once").exists(), "the policy asks", 120.0)
    controller.suspend()
    try:
        time.sleep(SILENT_SECONDS)
        assert "has not answered for" in run.output()
    finally:
        controller.resume()
    run.until_done(LONG_SECONDS)
    assert as_if_nothing_had_happened(run, restarts=1) == 0


def fill(folder: Path) -> None:
    """To the last block."""
    with suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(folder).free == 0


def test_a_full_disk_holds_a_run_on_two_nodes(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    small = cluster.folder / "small"
    run = cluster.submit("small/full-disk", "lora-zero2", f"--site={cluster.site('low')}")
    run.until_step(AT)
    fill(small)
    run.until(lambda: run.state() in ("FAILED", "COMPLETED"), "the job ends for good", LONG_SECONDS)
    assert run.restarts() <= 3
    assert run.status()["state"] == "held"
    assert "no space left" in about(run.path)["reason"]
    (small / "filler").unlink()
    run.job = resumed(run)
    run.until_done(LONG_SECONDS)
    drop_cut_lines(run.path)
    as_if_nothing_had_happened(run, restarts=0)
    shutil.rmtree(run.path)


def test_a_job_that_is_sent_from_within_another_has_nothing_of_it(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    limits = ("--partition=high", "--nodes=1", "--mem-per-cpu=100", "--time=1")
    command = (*cluster.distft, "submit", "recipe.yaml", "--run-dir=from-within", *VARIANTS["lora-zero2"])
    of_a_user = ("env", "SBATCH_NO_REQUEUE=1", "SBATCH_TIMELIMIT=1")
    said = cluster.call(*of_a_user, "salloc", *limits, "srun", "--cpu-bind=cores", *command)
    run = Run(cluster, cluster.folder / "from-within", "lora-zero2", submitted(said))
    run.until_done()
    assert as_if_nothing_had_happened(run, restarts=0) == 0


def test_a_copy_is_a_run_of_its_own(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    run = cluster.submit("original")
    run.until_step(AT)
    copy = cluster.folder / "copy"
    subprocess.run(["cp", "-a", run.path, copy], check=True)
    said = cluster.call(*cluster.distft, "cancel", copy, code=2)
    assert "there is nothing to cancel" in said
    run.until_done()
    assert as_if_nothing_had_happened(run, restarts=0) == 0
    assert about(copy)["wandb_id"] != about(run.path)["wandb_id"]
    again = Run(cluster, copy, run.variant, "")
    again.job = resumed(again)
    again.until_done()
    as_if_nothing_had_happened(again, restarts=0)


def test_two_submits_at_once_send_one_job(cluster: Cluster) -> None:
    command = [*cluster.distft, "submit", "recipe.yaml", "--run-dir=at-once", *VARIANTS["lora-zero2"]]
    both = [
        subprocess.Popen(command, cwd=cluster.folder, env=cluster.environment, stdout=-1, stderr=-2, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert any("already; cancel it first, or wait" in one for one in said)
    queue = cluster.call("squeue", "--noheader", "--me", "--format=%k").splitlines()
    assert len([line for line in queue if line.endswith(":" + str(cluster.folder / "at-once"))]) == 1
    cluster.call(*cluster.distft, "cancel", "at-once")


def test_status_has_true_words(cluster: Cluster) -> None:
    """A dependency that never comes, a suspended job, a partition that cancels."""
    cluster.call("scontrol", "update", "PartitionName=batch", "PreemptMode=CANCEL")
    try:
        command = ("submit", "recipe.yaml", "--run-dir=warned", *VARIANTS["lora-zero2"])
        said = cluster.call(*cluster.distft, *command, f"--site={cluster.site('batch')}")
        assert "partition batch cancels preempted jobs" in said
        cluster.call(*cluster.distft, "cancel", "warned")
    finally:
        cluster.call("scontrol", "update", "PartitionName=batch", "PreemptMode=REQUEUE")
    first = cluster.submit("suspended")
    second = cluster.submit("blocked", "lora-zero2", "--after=suspended")
    first.until_step(AT)
    cluster.call("scontrol", "suspend", first.job)
    first.until(lambda: first.status()["state"] == "suspended", "the run is suspended", 30.0)
    cluster.call("scontrol", "resume", first.job)
    cluster.call(*cluster.distft, "cancel", "suspended")
    second.until(lambda: second.status()["state"] == "blocked", "the second run is blocked", 60.0)
    cluster.call(*cluster.distft, "cancel", "blocked")
