"""What a user types on a login node, against a real SLURM."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.cluster.scenario import STEPS, VARIANTS, Cluster, Run, as_if_nothing_had_happened
from tests.e2e.command import about, until

SECRET = "wandb-key-that-nobody-may-see-0123456789"


def test_a_dry_run_prints_the_script_and_changes_nothing(cluster: Cluster) -> None:
    before = sorted(cluster.folder.rglob("*"))
    options = ("--run-dir=dry", "--dry-run", "--time=7", "--nodes=3", "train.global_batch=24")
    said = cluster.call(*cluster.distft, "submit", "recipe.yaml", *options)
    assert said.startswith("#!/bin/bash\n")
    assert "#SBATCH --time=7\n" in said
    assert "#SBATCH --nodes=3\n" in said
    assert sorted(cluster.folder.rglob("*")) == before


def test_a_check_sums_over_all_ranks(cluster: Cluster) -> None:
    said = cluster.call(*cluster.distft, "submit", "recipe.yaml", "--run-dir=looked", "--check")
    assert "all-reduce of 64 MiB over 4 ranks: correct" in said
    assert re.search(r"[\d.]+ GB/s per link", said)
    for number in range(4):
        assert f"rank {number} of 4 on node" in said
    assert re.search(r"training a small model with 4 forked ranks, ZeRO 2, fp32: 3 steps of [\d.]+ s, loss \d", said)
    assert f"sees {cluster.folder}" in said
    assert not (cluster.folder / "looked").exists()
    assert not list(cluster.folder.glob(".check-*"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--site=nowhere",), "no site profile 'nowhere'"),
        (("--time=soon",), "--time: got 'soon'; give a limit such as 90 (minutes)"),
        (("--nodes=0",), "--nodes: got 0; must be greater than 0"),
        (("--site=nosuch.toml",), "sbatch: error: invalid partition specified: nosuch"),
        (("--nodes=3",), "train.global_batch 16 is not a multiple of micro_batch 2 x 6 ranks"),
        (("data.train=/nowhere.jsonl",), "data.train: /nowhere.jsonl does not exist"),
        (("model={path: org/name}",), "model.path: org/name is not in the hub's cache"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_sent(
    cluster: Cluster, options: tuple[str, ...], sentence: str
) -> None:
    cluster.site("nosuch")
    said = cluster.call(*cluster.distft, "submit", "recipe.yaml", "--run-dir=refused", *options, code=2)
    assert sentence in said
    assert "Traceback" not in said
    assert not (cluster.folder / "refused").exists()


def test_a_run_is_followed_chained_and_cancelled(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    cluster.environment["WANDB_API_KEY"] = SECRET
    try:
        first = cluster.submit("first")
        second = cluster.submit("second", "lora-zero2", "--after=first")
        said = cluster.call(
            *cluster.distft, "submit", "recipe.yaml", *VARIANTS["lora-zero2"], "--run-dir=first", code=2
        )
        assert f"job {first.job} of {first.path} is" in said
        following = subprocess.Popen(
            [*cluster.distft, "status", "--watch", first.path], env=cluster.environment, stdout=subprocess.PIPE
        )
        until(lambda: (first.path / "logs" / "attempt-001" / "rank-3.log").exists(), "rank 3 has a log", 60.0)
        logs = subprocess.Popen(
            [*cluster.distft, "logs", "-f", first.path, "--rank", "3"], env=cluster.environment, stdout=subprocess.PIPE
        )
        assert second.status()["state"] == "queued"
        first.until_done()
        logs.communicate(timeout=30)
        assert logs.returncode == 0
        following.terminate()
        following.communicate()
    finally:
        del cluster.environment["WANDB_API_KEY"]
    assert as_if_nothing_had_happened(first, restarts=0) == 0
    second.until_step(1)
    cluster.call(*cluster.distft, "cancel", second.path)
    second.until(lambda: second.status()["state"] == "cancelled", "the run is cancelled", 60.0)
    assert no_secret_in(first)
    assert no_secret_in(second)


def no_secret_in(run: Run) -> bool:
    shown = run.cluster.call("scontrol", "show", "job", "--details", run.job)
    kept = [path.read_bytes() for path in run.path.rglob("*") if path.is_file()]
    open_to_others = [path for path in run.path.rglob("*") if path.stat().st_mode & 0o077 and not path.is_symlink()]
    assert open_to_others == []
    assert not list(run.path.rglob("*.pkl"))
    return SECRET not in shown and not any(SECRET.encode() in content for content in kept)


def test_a_finished_run_is_not_sent_again(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    path = cluster.unbroken["lora-zero2"]
    assert "is finished; nothing to do" in cluster.call(*cluster.distft, "resume", path)
    assert about(path)["attempts"][-1]["last_step"] == STEPS
