"""What is killed or lost under a job, and that the run comes out as if nothing had happened.

Two nodes with two ranks each. The numbers are those of the acceptance in the issue that asked for it.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.cluster.scenario import AT, EVERY, Cluster, as_if_nothing_had_happened, disturbed, kill, resumed
from tests.e2e.command import about, losses


@pytest.mark.parametrize("variant", ["lora-zero2", pytest.param("full-zero3", marks=pytest.mark.long)])
def test_a_kill_of_the_batch_script_loses_no_step(cluster: Cluster, variant: str) -> None:
    """SLURM takes it for the job's own failure and does not start it again; the first node's parent does."""
    cluster.reference(variant)
    run = cluster.submit(f"script-{variant}", variant)
    disturbed(run, "SIGKILL of the batch script", lambda: kill(run.script()), lost=range(1))
    assert about(run.path)["attempts"][0]["cause"].startswith("the batch script was killed")


def killer(cluster: Cluster, victim: str, moment: str) -> Path:
    """A profile with which the first `scontrol requeue` kills the policy that asks for it, or the batch script."""
    folder = cluster.folder / f"killer-{victim}-{moment}"
    folder.mkdir()
    real = shutil.which("scontrol")
    pid = "$PPID" if victim == "policy" else "$(ps -o ppid= -p $PPID)"
    (folder / "scontrol").write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = requeue ] && mkdir {folder}/once 2>/dev/null; then\n'
        + (f'  {real} "$@"\n' if moment == "after" else "")
        + f'  kill -9 {pid}; exit 1\nfi\nexec {real} "$@"\n'
    )
    (folder / "scontrol").chmod(0o755)
    profile = folder / "site.toml"
    profile.write_text(f"setup = ['export PATH={folder}:$PATH']\n{cluster.site('low').read_text()}")
    return profile


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("victim", ["policy", "script"])
def test_a_kill_around_the_requeue(cluster: Cluster, victim: str, moment: str) -> None:
    """Nobody is left to ask where the script is killed within the policy; `status` says how to go on."""
    cluster.reference("lora-zero2")
    run = cluster.submit(f"requeue-{victim}-{moment}", "lora-zero2", f"--site={killer(cluster, victim, moment)}")
    run.until_step(AT)
    cluster.call("scancel", "-s", "USR1", run.job)
    if (victim, moment) == ("script", "before"):
        run.until(lambda: run.state() == "FAILED", "the job has failed", 60.0)
        assert f"continue it with: distft resume {run.path}" in cluster.call(*cluster.distft, "status", run.path)
        run.job = resumed(run)
    run.until_done()
    assert (run.path.parent / f"killer-{victim}-{moment}" / "once").is_dir()
    assert as_if_nothing_had_happened(run, restarts=0 if (victim, moment) == ("script", "before") else 1) == 0


# --- 4: kills ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["lora-zero2", pytest.param("full-zero3", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("who", "cause", "options", "restarts"),
    [
        ("rank", "rank 3 was killed by SIGKILL", (), 0),  # started again within the job
        pytest.param("rank", "rank 3 was killed", ("--max-restarts=0",), 1, marks=pytest.mark.long),
        pytest.param("fork server", "the fork server was killed by SIGKILL", (), 0, marks=pytest.mark.long),
        ("parent", "node lost", (), 1),
        ("srun", "srun or the first node's light parent was killed by signal 9", (), 1),
    ],
)
def test_a_kill_loses_at_most_the_steps_since_the_last_commit(
    cluster: Cluster, variant: str, who: str, cause: str, options: tuple[str, ...], restarts: int
) -> None:
    cluster.reference(variant)
    run = cluster.submit(f"killed-{who.replace(' ', '-')}-{restarts}-{variant}", variant, *options)
    victims = {
        "rank": lambda: run.rank(3),
        "fork server": lambda: run.fork_server(1),
        "parent": lambda: run.parent(1),
        "srun": run.srun,
    }
    event = f"SIGKILL of a {who}" + (f", {' '.join(options)}" if options else "")
    disturbed(run, event, lambda: kill(victims[who]()), lost=range(EVERY + 1), restarts=restarts)
    assert cause in about(run.path)["attempts"][0]["cause"]
    assert len(about(run.path)["attempts"]) == 2


@pytest.mark.long
def test_a_stopped_rank_is_named_and_started_again_in_the_job(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    run = cluster.submit("stopped", "lora-zero2")
    disturbed(
        run, "SIGSTOP of a rank", lambda: run.rank(2).send_signal(signal.SIGSTOP), lost=range(EVERY + 1), restarts=0
    )
    [first, _] = about(run.path)["attempts"]
    assert first["cause"].startswith(f"hang: rank 2 on {first['hosts'][1]} gave no sign of life for 30 s")


@pytest.mark.long
def test_a_node_that_failed_twice_is_not_used_again(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    run = cluster.submit("bad-node", "lora-zero2", "--max-restarts=0")
    for attempt, step in ((1, AT), (2, AT + EVERY)):
        run.until_step(step, attempt)
        bad = about(run.path)["attempts"][-1]["hosts"][1]
        kill(run.rank(3))
        run.until(lambda number=attempt: len(about(run.path)["attempts"]) > number, "the next attempt")  # type: ignore[misc]
    run.until_done()
    as_if_nothing_had_happened(run, restarts=2)
    first, second, third = about(run.path)["attempts"]
    assert first["failed_on"] == second["failed_on"] == bad
    assert bad not in third["hosts"]
    assert run.status()["excluded"] == [bad]
    said = cluster.call(*cluster.distft, "status", run.path)
    assert f"excluded nodes (attempts failed there twice): {bad}" in said


# --- 5: nodes ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("variant", "index", "act"),
    [
        ("lora-zero2", 0, "crash"),
        ("lora-zero2", 1, "crash"),
        ("lora-zero2", 0, "cut"),
        ("lora-zero2", 1, "cut"),
        ("full-zero3", 1, "crash"),
        ("full-zero3", 0, "cut"),
    ],
)
def test_a_lost_node_loses_at_most_the_steps_since_the_last_commit(
    cluster: Cluster, variant: str, index: int, act: str
) -> None:
    cluster.reference(variant)
    run = cluster.submit(f"{act}-{index}-{variant}", variant)
    run.until_step(AT)
    node = about(run.path)["attempts"][0]["hosts"][index]
    try:
        disturbed(run, f"node {index + 1} {act}", lambda: cluster.devcluster(act, node), lost=range(EVERY + 1))
    finally:
        cluster.devcluster("restart" if act == "crash" else "heal", node)
        run.until(cluster.all_idle, "all nodes are idle again", 120.0)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_an_attempt_on_a_node_cut_off_trains_on_and_records_nothing_after_the_next_began(cluster: Cluster) -> None:
    cluster.reference("one-node-long")
    run = cluster.submit("zombie", "one-node-long")
    run.until_step(50)
    [node] = about(run.path)["attempts"][0]["hosts"]
    before = max(losses(run.path))
    try:
        disturbed(run, "only node cut off", lambda: cluster.devcluster("cut", node), lost=range(251), at=before)
        [first, *_] = about(run.path)["attempts"]
        assert first["last_step"] > before + 50, "it was to train on for a while"
        assert "has taken over" in run.output() + (run.path / "logs/attempt-001/rank-0.log").read_text()
    finally:
        cluster.devcluster("heal", node)
        run.until(cluster.all_idle, "all nodes are idle again", 120.0)
