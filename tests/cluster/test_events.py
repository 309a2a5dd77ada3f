"""What a cluster does to a job, and that the run comes out as if nothing had happened.

Two nodes with two ranks each. The numbers are those of the acceptance in the issue that asked for it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from itertools import pairwise

import pytest

from tests.cluster.scenario import (
    AT,
    EVERY,
    HIGH,
    LONG_SECONDS,
    ROOT,
    SAMPLE,
    SECONDS,
    STEPS,
    VARIANTS,
    Cluster,
    Run,
    as_if_nothing_had_happened,
    disturbed,
    note,
    now,
    preempt,
    resumed,
    resumed_after,
)
from tests.e2e.command import about, losses, records, until

# --- 1: preemption ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["lora-zero2", pytest.param("full-zero3", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("event", "site"),
    [
        ("preempted with the user signal", "low"),
        ("preempted with grace, no user signal", "low-nosignal"),
        ("preempted without grace", "low0-nosignal"),
    ],
)
def test_preemption_with_notice_loses_no_step(cluster: Cluster, variant: str, event: str, site: str) -> None:
    cluster.reference(variant)
    run = cluster.submit(f"preempted-{site}-{variant}", variant, f"--site={cluster.site(site)}")
    disturbed(run, event, lambda: preempt(cluster), lost=range(1))
    assert about(run.path)["attempts"][0]["cause"].startswith("preempted")


@pytest.mark.long
def test_several_tasks_lose_no_step_and_no_score(cluster: Cluster) -> None:
    """A mixture, a CRF, evaluations, the best checkpoint."""
    cluster.reference("two-tasks")
    run = cluster.submit("preempted-two-tasks", "two-tasks")
    disturbed(run, "preempted, several tasks", lambda: preempt(cluster), lost=range(1))
    wanted, found = (
        {r["step"]: {k: v for k, v in r.items() if k.startswith("eval_")} for r in records(path) if "eval_loss" in r}
        for path in (cluster.unbroken["two-tasks"], run.path)
    )
    assert found == wanted
    assert list(wanted) == [0, 20, 40, 60]
    assert "eval_entities.f1" in wanted[60]


# --- 2: time limits ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("variant", "event", "site", "limit"),
    [
        ("lora-zero2-long", "time limit with the signal", "low", "2"),
        ("full-zero3-long", "time limit with the signal", "low", "2"),
        ("lora-zero2-long", "time limit by the clock", "low-nosignal", "1"),
        ("full-zero3-long", "time limit by the clock", "low-nosignal", "1"),
    ],
)
def test_time_limits_lose_no_step(cluster: Cluster, variant: str, event: str, site: str, limit: str) -> None:
    cluster.reference(variant)
    run = cluster.submit(f"limit-{site}-{variant}", variant, f"--site={cluster.site(site)}", f"--time={limit}")
    run.until_done(LONG_SECONDS)
    attempts = about(run.path)["attempts"]
    assert len(attempts) >= 3, "the limit was to be reached twice"
    assert as_if_nothing_had_happened(run, restarts=len(attempts) - 1) == 0
    kind = "time limit (by the clock)" if site == "low-nosignal" else "time limit"
    assert all(attempt["cause"].startswith(kind) for attempt in attempts[:-1]), attempts
    trained = {record["attempt"] for record in records(run.path) if "loss" in record}
    for before, after in pairwise(attempts):
        if after["number"] in trained:  # the last one may have nothing but the export to do
            note(run, event, 0, resumed_after(run, before["end"], attempt=after["number"]))


@pytest.mark.long
def test_a_time_limit_in_a_start_up_has_the_job_started_again(cluster: Cluster) -> None:
    """Nothing looks at the clock there, and after a time limit SLURM starts nothing again: the policy does."""
    cluster.reference("lora-zero2")
    data = cluster.folder / "slow.jsonl"  # takes minutes to encode
    data.write_text(SAMPLE.read_text(encoding="utf-8") * 2_000, encoding="utf-8")
    given = (f"model={{path: {cluster.unbroken['lora-zero2'] / 'base'}}}", f"data={{train: {data}, row_tokens: 128}}")
    site = f"--site={cluster.site('low-nosignal')}"
    run = cluster.submit("limit-in-start-up", "lora-zero2", site, "--time=1", *given)
    run.until(lambda: run.restarts() == 1, "the job is started again")
    assert about(run.path)["attempts"][0]["cause"].startswith("time limit: preempted (SIGTERM)")
    cluster.call(*cluster.distft, "cancel", run.path)
    data.unlink()


# --- 3: requeue and signals from outside ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["lora-zero2", pytest.param("full-zero3", marks=pytest.mark.long)])
def test_a_requeue_from_outside_loses_no_step(cluster: Cluster, variant: str) -> None:
    cluster.reference(variant)
    run = cluster.submit(f"requeued-{variant}", variant)
    disturbed(run, "scontrol requeue", lambda: cluster.call("scontrol", "requeue", run.job), lost=range(1))


@pytest.mark.parametrize("variant", ["lora-zero2", pytest.param("full-zero3", marks=pytest.mark.long)])
def test_a_signal_from_outside_is_one_requeue(cluster: Cluster, variant: str) -> None:
    cluster.reference(variant)
    run = cluster.submit(f"signalled-{variant}", variant)
    disturbed(run, "scancel -s USR1", lambda: cluster.call("scancel", "-s", "USR1", run.job), lost=range(1))
    assert about(run.path)["attempts"][0]["cause"] == "preempted (SIGUSR1)"


# --- 6: cancelled -----------------------------------------------------------------------------------------------------


def test_a_cancelled_run_stays_so_until_it_is_resumed(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    run = cluster.submit("cancelled")
    run.until_step(AT)
    cluster.call("scancel", run.job)
    run.until(lambda: run.state() == "CANCELLED", "the job is cancelled", 60.0)
    assert run.restarts() == 0
    run.until(lambda: run.status()["state"] == "cancelled", "status says cancelled", 20.0)
    run.job = resumed(run)
    run.until_done()
    assert as_if_nothing_had_happened(run, restarts=0) <= EVERY
    assert len(about(run.path)["attempts"]) == 2


# --- 9: a run that cannot get anywhere --------------------------------------------------------------------------------


def test_a_run_that_always_crashes_is_held(cluster: Cluster) -> None:
    run = cluster.submit("hopeless", "lora-zero2", "train.lr=1.0e+30", "train.clip=0", "train.steps=50")
    run.until(lambda: run.ended() == "held", "the run is held")
    run.until(lambda: run.state() == "FAILED", "the job has failed", 30.0)
    assert run.restarts() == 1  # after the first failure the ranks are started again within the job
    attempts = about(run.path)["attempts"]
    assert [attempt["exit_code"] for attempt in attempts] == [1, 1, 1]
    found = run.status()
    assert found["state"] == "held"
    assert "3 attempts in a row committed nothing" in found["reason"]
    assert "of step" in found["reason"]
    assert max(losses(run.path)) < STEPS


# --- 7, 8: signals at other moments -----------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_that_finishes_within_its_grace_time_is_not_trained_again(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    run = cluster.submit("finishing", "lora-zero2", f"--site={cluster.site('low-nosignal')}")
    run.until_step(STEPS - 1)
    preempt(cluster)
    run.until_done()
    assert as_if_nothing_had_happened(run, restarts=run.restarts()) == 0
    assert run.restarts() <= 1


def said(run: Run, text: str) -> Callable[[], bool]:
    return lambda: text in run.output()


def there(run: Run, pattern: str) -> Callable[[], bool]:
    return lambda: any(run.path.glob(pattern))


PHASES: dict[str, Callable[[Run], Callable[[], bool]]] = {
    "parent": lambda run: there(run, "slurm/*_log.out"),
    "imports": lambda run: there(run, "logs/attempt-001/node-0.log"),
    "model": lambda run: there(run, ".base.staged"),
    "tokens": lambda run: there(run, "base/config.json"),
    "engine": lambda run: said(run, "documents"),
    "step 1": lambda run: said(run, "parameters are trained"),
    "evaluation": lambda run: lambda: any(r["step"] >= 20 for r in records(run.path)),
    "save": lambda run: there(run, "checkpoints/.staged-*"),
    "export": lambda run: there(run, ".final.staged"),
}


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_every_phase(cluster: Cluster, phase: str) -> None:
    cluster.reference("lora-zero2")
    name = f"signal-{phase.replace(' ', '-')}"
    overrides = (f"data.eval={cluster.folder / 'eval.jsonl'}", "train.eval_every=20")
    run = cluster.submit(name, "lora-zero2", *overrides)
    until(PHASES[phase](run), f"{phase} of {run.path}", SECONDS, every=0.005)
    then = now()
    cluster.call("scancel", "-s", "USR1", run.job)
    run.until_done()
    restarts = run.restarts()
    assert restarts <= 1, "one signal, and more than one restart"
    assert as_if_nothing_had_happened(run, restarts) == 0
    note(
        run,
        f"SIGUSR1 in {phase}",
        0,
        resumed_after(run, then, attempt=2) if restarts and phase != "export" else 0.0,
    )


@pytest.mark.long
def test_a_signal_while_the_job_waits_changes_nothing_or_starts_it_again_once(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    high = cluster.call("sbatch", "--parsable", "--output=/dev/null", *HIGH[:-1], "--wrap=sleep 10").strip()
    until(lambda: "RUNNING" in cluster.call("squeue", "--job", high, "--format=%T"), "the nodes are taken", 20.0)
    run = cluster.submit("waiting")
    run.until(lambda: run.status()["state"] == "queued", "the run is queued", 20.0)
    # scancel tries again for a while, and so may reach the job after all when it has begun
    subprocess.run(["scancel", "-s", "USR1", run.job], env=cluster.environment, check=False, capture_output=True)
    run.until_done()
    assert run.restarts() <= 1
    assert as_if_nothing_had_happened(run, restarts=run.restarts()) == 0


# --- 10: other ways and other people ----------------------------------------------------------------------------------


@pytest.mark.long
def test_the_plain_batch_script_does_the_same(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    path = cluster.folder / "plain"
    options = ("--partition=low", "--mem=3000M", f"--output={cluster.folder}/plain.out", "--parsable")
    script = ROOT / "slurm" / "train.sbatch"
    said = cluster.call("sbatch", *options, script, "recipe.yaml", path, *VARIANTS["lora-zero2"])
    run = Run(cluster, path, "lora-zero2", said.strip())
    disturbed(
        run, "scancel -s USR1, plain script", lambda: cluster.call("scancel", "-s", "USR1", run.job), lost=range(1)
    )
    assert [attempt["job"] for attempt in run.status()["attempts"]] == [run.job, run.job]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_four_nodes(cluster: Cluster) -> None:
    cluster.reference("four-nodes")
    run = cluster.submit("four", "four-nodes")
    disturbed(run, "scancel -s USR1, 4 nodes", lambda: cluster.call("scancel", "-s", "USR1", run.job), lost=range(1))
    assert about(run.path)["attempts"][0]["world_size"] == 8


@pytest.mark.long
def test_another_profile_with_other_partitions(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    run = cluster.submit("elsewhere", "lora-zero2", f"--site={cluster.site('batch')}")
    disturbed(run, "preempted in partition batch", lambda: preempt(cluster), lost=range(1))
    assert run.scontrol()["Partition"] == "batch"


@pytest.mark.long
def test_another_user(cluster: Cluster, another_user: str) -> None:
    cluster.reference("lora-zero2")
    theirs = cluster.of(another_user)
    run = theirs.submit("theirs")
    disturbed(
        run, "scancel -s USR1, another user", lambda: theirs.call("scancel", "-s", "USR1", run.job), lost=range(1)
    )
    assert run.path.stat().st_mode & 0o077 == 0
    assert run.path.owner() == another_user


# --- 12: one chart ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_wandb_has_one_id_over_all_attempts(cluster: Cluster) -> None:
    cluster.reference("lora-zero2")
    run = cluster.submit("wandb", "lora-zero2", "track.wandb=offline")
    for attempt in (1, 2):
        run.until_step(AT + 8 * attempt, attempt)
        cluster.call("scancel", "-s", "USR1", run.job)
    run.until_done()
    assert as_if_nothing_had_happened(run, restarts=2) == 0
    folders = [path.name for path in (run.path / "wandb").glob("offline-run-*")]
    assert len(folders) == 3
    assert {name.rpartition("-")[2] for name in folders} == {about(run.path)["wandb_id"]}
