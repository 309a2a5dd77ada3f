"""Runs that are stopped, killed and damaged: the same command continues them, and nothing shows in the result."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from distft.process.stop_signals import SIGNALS
from tests.e2e.command import (
    EVERY,
    STEPS,
    Ended,
    Workplace,
    about,
    checkpoints,
    eval_losses,
    flip,
    losses,
    records,
    until,
    until_step,
)
from tests.e2e.conftest import Made

TENSORBOARD = f"track.tensorboard={str(importlib.util.find_spec('tensorboard') is not None).lower()}"


def test_term_in_training_saves_and_says_so(preempted: Made) -> None:
    assert preempted.ended.code == 75
    assert "Traceback" not in preempted.ended.err
    content = about(preempted.run)
    [attempt] = content["attempts"]
    assert content["state"] == "preempted"
    assert attempt["exit_code"] == 75
    assert "SIGTERM" in attempt["cause"]
    last = max(losses(preempted.run))
    assert EVERY < last < STEPS
    assert attempt["last_step"] == last
    assert checkpoints(preempted.run)[-1].name == f"step-{last:08d}"


@dataclass(frozen=True)
class Continued:
    run: Path
    ended: Ended
    first_pid: int
    intruder: Ended  # the same command, given while the first was at work


@pytest.fixture(scope="module")
def continued(preempted: Made) -> Continued:
    """The preempted run, continued; a second process wanted to continue it too."""
    run = preempted.copy("continued")
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2")
    with preempted.place.start(*command) as first:
        until(lambda: len(about(run)["attempts"]) == 2, "the second attempt")
        intruder = preempted.place.run(*command)
        return Continued(run, first.end(), first.pid, intruder)


def test_the_same_command_continues_as_if_unbroken(continued: Continued, unbroken: Made) -> None:
    assert continued.ended.code == 0, continued.ended.err
    assert about(continued.run)["state"] == "done"
    assert [attempt["exit_code"] for attempt in about(continued.run)["attempts"]] == [75, 0]
    assert sorted(losses(continued.run)) == list(range(1, STEPS + 1))
    assert losses(continued.run) == losses(unbroken.run)  # each step once, to the last bit
    assert eval_losses(continued.run) == eval_losses(unbroken.run)


def test_a_second_process_is_refused(continued: Continued) -> None:
    assert continued.intruder.code == 2
    sentence = continued.intruder.sentence
    assert str(continued.first_pid) in sentence
    assert about(continued.run)["attempts"][1]["hosts"][0] in sentence


def test_a_finished_run_is_a_no_op(unbroken: Made) -> None:
    before = (unbroken.run / "run.json").read_bytes()
    started = time.monotonic()
    again = unbroken.place.run("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", unbroken.run)
    assert again.code == 0
    assert "finished" in again.out
    assert again.err == ""
    assert time.monotonic() - started < 10.0  # no rank was started
    assert (unbroken.run / "run.json").read_bytes() == before


@contextmanager
def signals_held() -> Iterator[None]:
    """A process started inside gets what is sent to it when it begins to listen."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listens(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return all(int(line.split()[1], 16) >> (number - 1) & 1 for number in SIGNALS)
    return False


@pytest.mark.parametrize(
    ("number", "seconds"),
    [(signal.SIGUSR1, None), (signal.SIGUSR2, 0.0), (signal.SIGINT, 0.3), (signal.SIGTERM, 0.8), (signal.SIGHUP, 1.5)],
)
def test_a_signal_before_the_first_step(place: Workplace, number: signal.Signals, seconds: float | None) -> None:
    """`seconds`: after the process listens; None: before it runs at all."""
    run = place.folder / f"early-{number.name}-{seconds}"
    with signals_held():
        starting = place.start("train", "recipe.yaml", "--run-dir", run, "--nproc", "1")
        command = starting.__enter__()
        if seconds is None:
            command.send(number)
    try:
        if seconds is not None:
            until(lambda: listens(command.pid), "the parent listens", 20.0, every=0.001)
            moment = time.monotonic() + seconds
            until(lambda: time.monotonic() >= moment, "the moment to signal", every=0.005)
            command.send(number)
        ended = command.end(90.0)
    finally:
        starting.__exit__(None, None, None)
    assert ended.code == 75, ended.err
    assert "Traceback" not in ended.err + "".join(log.read_text() for log in run.glob("logs/*/*.log"))
    content = about(run)
    assert content["state"] == "preempted"
    assert number.name in content["attempts"][-1]["cause"]
    assert losses(run) == {}


def test_term_in_evaluation(preempted: Made, unbroken: Made) -> None:
    run = preempted.copy("evaluating")
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2")
    with preempted.place.start(*command) as evaluating:
        until_step(evaluating, run, STEPS)
        evaluating.send(signal.SIGUSR1)
        ended = evaluating.end(60.0)
    assert ended.code == 75, ended.err
    assert eval_losses(run) == []  # or the signal came too late, and this test shows nothing
    assert checkpoints(run)[-1].name == f"step-{STEPS:08d}"
    ended = preempted.place.run(*command)
    assert ended.code == 0, ended.err
    assert len(about(run)["attempts"]) == 3
    assert losses(run) == losses(unbroken.run)
    assert eval_losses(run) == eval_losses(unbroken.run)
    assert len(eval_losses(run)) == 1


def test_a_killed_rank(place: Workplace, unbroken: Made) -> None:
    run = place.folder / "killed-rank"
    command = ("train", "recipe.yaml", "--run-dir", run, "--nproc", "2")
    with place.start(*command) as first:
        until_step(first, run, EVERY + 5)
        first.ranks()[1].kill()
        ended = first.end(15.0)
    assert ended.code == 1
    assert "rank 1 was killed by SIGKILL" in ended.err
    assert "Traceback" not in ended.err
    content = about(run)
    assert content["state"] == "failed"
    assert content["attempts"][0]["cause"] == "rank 1 was killed by SIGKILL"
    lost = [step for step in losses(run) if step > EVERY]
    assert lost
    assert [folder.name for folder in checkpoints(run)] == [f"step-{EVERY:08d}"]
    assert place.run(*command).code == 0
    expected = {step: values * (2 if step in lost else 1) for step, values in losses(unbroken.run).items()}
    assert losses(run) == expected


def test_ranks_that_are_lost_are_started_again_here(place: Workplace, unbroken: Made) -> None:
    """A killed rank, then the fork server: one command, three attempts, and the run comes out the same."""
    run = place.folder / "restarted"
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2", "--max-restarts", "2")
    with place.start(*command) as only:
        until_step(only, run, EVERY + 5)
        only.ranks()[1].kill()
        until(lambda: any(r["attempt"] == 2 and r["step"] > EVERY + 8 for r in records(run)), "the second attempt")
        [server] = [p for p in psutil.Process(only.pid).children() if p.name() == "distft-fork"]
        server.kill()
        ended = only.end()
    assert ended.code == 0, ended.err
    causes = [attempt["cause"] for attempt in about(run)["attempts"]]
    assert causes == ["rank 1 was killed by SIGKILL", "the fork server was killed by SIGKILL", "finished"]
    assert about(run)["state"] == "done"
    assert {attempt["first_step"] for attempt in about(run)["attempts"][1:]} == {EVERY + 1}
    assert {step: set(values) for step, values in losses(run).items()} == {
        step: set(values) for step, values in losses(unbroken.run).items()
    }
    assert eval_losses(run) == eval_losses(unbroken.run)


def test_restarts_here_end_where_they_lead_nowhere(place: Workplace) -> None:
    run = place.folder / "nowhere"
    broken = ("train.lr=1.0e+30", "train.clip=0", "data.eval=null")
    ended = place.run("train", "recipe.yaml", *broken, "--run-dir", run, "--nproc", "1", "--max-restarts", "9")
    assert ended.code == 1
    assert len(about(run)["attempts"]) == 2  # the second one committed nothing either
    assert ended.err.count("starting the ranks again here") == 0
    assert ended.out.count("restarting the ranks here, restart 1 of 9") == 1


def test_ranks_start_by_themselves_where_a_fork_is_not_safe(place: Workplace, unbroken: Made) -> None:
    """A library that starts a thread when it is imported: that thread would be missing in a forked rank."""
    folder, run = place.folder / "site", place.folder / "afresh"
    folder.mkdir()
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    (folder / "sitecustomize.py").write_text(thread)
    command = ("train", "recipe.yaml", "train.steps=5", "train.schedule=constant", "--run-dir", run, "--nproc", "2")
    with place.start(*command, environment={"PYTHONPATH": str(folder)}) as only:
        ended = only.end()
    assert ended.code == 0, ended.err
    for rank in (0, 1):
        assert "imports everything itself" in (run / "logs" / "attempt-001" / f"rank-{rank}.log").read_text()
    assert losses(run)[1] == losses(unbroken.run)[1]
    assert sorted(losses(run)) == [1, 2, 3, 4, 5]


def gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)  # nobody has asked for its exit code yet
    except psutil.NoSuchProcess:
        return True


def points(run: Path) -> dict[str, dict[int, list[float]]]:
    """Values at each step of each tag, as TensorBoard reads them."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs the extra")
    read = events.EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    found: dict[str, dict[int, list[float]]] = {}
    for tag in read.Tags()["scalars"]:
        for event in read.Scalars(tag):
            found.setdefault(tag, {}).setdefault(event.step, []).append(event.value)
    return found


def assert_one_curve(run: Path) -> None:
    """TensorBoard has each figure of metrics.jsonl, once per step, as it was recorded last."""
    expected: dict[str, dict[int, list[float]]] = {}
    for record in records(run):
        for tag in record.keys() - {"step", "attempt", "time"}:
            expected.setdefault(tag, {})[record["step"]] = [float(np.float32(record[tag]))]
    assert points(run) == expected
    assert sorted(expected["loss"]) == list(range(1, STEPS + 1))
    assert any(len(values) == 2 for values in losses(run).values())


def test_a_killed_parent(place: Workplace, unbroken: Made) -> None:
    run = place.folder / "killed-parent"
    command = ("train", "recipe.yaml", TENSORBOARD, "--run-dir", run, "--nproc", "2")
    with place.start(*command) as first:
        until_step(first, run, EVERY + 5)
        ranks = first.ranks()
        assert sorted(ranks) == [0, 1]
        os.kill(first.pid, signal.SIGKILL)
        until(lambda: all(gone(rank) for rank in ranks.values()), "the ranks die with their parent", 2.0)
    assert about(run)["state"] == "running"
    [seen] = json.loads(place.run("status", "--json", run).out)
    assert seen["state"] == "lost"
    assert "lost" in place.run("status", run).out
    assert max(points(run)["loss"]) > EVERY  # what is recorded is there at once
    assert place.run(*command).code == 0
    assert_one_curve(run)
    first_attempt, second = about(run)["attempts"]
    assert first_attempt["cause"] == "killed"
    assert first_attempt["start"] < first_attempt["end"] < second["start"]
    assert first_attempt["last_step"] > EVERY
    assert second["first_step"] == EVERY + 1
    assert {step: set(values) for step, values in losses(run).items()} == {
        step: set(values) for step, values in losses(unbroken.run).items()
    }


def test_a_damaged_checkpoint_is_passed_over(preempted: Made, unbroken: Made) -> None:
    run = preempted.copy("damaged")
    newest = checkpoints(run)[-1]
    flip(newest / "rank-00001.safetensors")
    ended = preempted.place.run("train", "--run-dir", run, "--nproc", "2")
    assert ended.code == 0, ended.err
    assert ended.err.count("is not used") == 1
    assert f"checkpoint {newest.name} is not used: rank-00001.safetensors" in ended.err
    assert about(run)["attempts"][1]["first_step"] == EVERY + 1
    assert {step: set(values) for step, values in losses(run).items()} == {
        step: set(values) for step, values in losses(unbroken.run).items()
    }


def test_all_checkpoints_damaged(preempted: Made) -> None:
    run = preempted.copy("all-damaged")
    for folder in checkpoints(run):
        flip(folder / "rank-00000.safetensors")
    before = losses(run)
    ended = preempted.place.run("train", "--run-dir", run, "--nproc", "1")
    assert ended.code == 1
    assert "no checkpoint" in ended.sentence
    assert "\n" not in ended.sentence
    assert ended.sentence == about(run)["attempts"][-1]["cause"]
    assert losses(run) == before
    assert about(run)["state"] == "failed"


def test_a_rank_that_is_stopped_is_named_and_the_attempt_ends(unbroken: Made) -> None:
    place, run = unbroken.place, unbroken.place.folder / "stopped"
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2")
    with place.start(*command) as first:
        until_step(first, run, EVERY + 5)
        first.ranks()[1].send_signal(signal.SIGSTOP)
        ended = first.end()
    assert ended.code == 1
    said = f"hang: rank 1 on {about(run)['attempts'][0]['hosts'][0]} gave no sign of life for 30 s, in "
    cause = about(run)["attempts"][0]["cause"]
    assert cause.startswith(said)
    assert "step 2" in cause  # or the data of it
    assert said in ended.err
    for rank in (0, 1):
        log = (run / "logs" / "attempt-001" / f"rank-{rank}.log").read_text()
        assert "most recent call first" in log, f"no stacks of rank {rank}"
    assert place.run(*command).code == 0
    assert all(set(values) == set(losses(unbroken.run)[step]) for step, values in losses(run).items())
    assert sorted(losses(run)) == list(range(1, STEPS + 1))


def test_what_changes_the_losses_has_to_be_asked_for(preempted: Made) -> None:
    """More steps for a finished run; other data under a run that was stopped."""
    place, run = preempted.place, preempted.copy("allowed")
    shutil.copy(place.folder / "train.jsonl", place.folder / "grown.jsonl")
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2")
    with open(place.folder / "train.jsonl", "a") as file:
        file.write('{"prompt": "And the bell?", "completion": "ring"}\n')
    try:
        ended = place.run(*command)
        assert ended.code == 2
        assert "add --allow data.content, or use the same values:\n  needs --allow: data.content: '" in ended.sentence
        assert place.run(*command, "--allow", "data.content").code == 0
    finally:
        shutil.copy(place.folder / "grown.jsonl", place.folder / "train.jsonl")


def test_a_finished_run_is_prolonged(full: Made) -> None:
    place, run = full.place, full.copy("prolonged")
    command = ("train", "--run-dir", run, "--nproc", "1")
    assert place.run(*command).out.endswith("nothing to do\n")
    overrides = ("data.train=long.jsonl", "adapter={type: none}", "train.steps=8", "engine.dtype=bf16")
    longer = ("train", "recipe.yaml", *overrides, "--run-dir", run, "--nproc", "1")
    refused = place.run(*longer)
    assert refused.code == 2
    assert "--allow train.steps" in refused.sentence
    assert place.run(*longer, "--allow", "train.steps").code == 0
    assert sorted(losses(run)) == list(range(1, 9))
    assert [attempt["first_step"] for attempt in about(run)["attempts"]] == [1, 7]
    assert json.loads((run / "final" / "distft.json").read_text())["step"] == 8
