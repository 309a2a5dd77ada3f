"""Work of one process for which the others wait, or which begins when they have ended: on one node and on two."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest
from safetensors import safe_open

from tests.e2e.command import Started, Workplace, about, losses, until
from tests.e2e.nodes import children, two_nodes

EXPORT = "distft-export"  # of a process, in ps
MANY = 60_000  # records, which take longer to encode than the time-out


def export_of(command: Started, after: float = 0.0) -> psutil.Process:
    """The process that writes final/, stopped so many seconds after it began."""
    until(lambda: bool(children(command.pid, EXPORT)), "the export begins", every=0.002)
    [process] = children(command.pid, EXPORT)
    time.sleep(after)
    process.send_signal(signal.SIGSTOP)
    return process


def test_work_of_rank_0_that_outlasts_the_timeout_is_no_hang_on_another_node(place: Workplace) -> None:
    timeout, run = 8, place.folder / "long-work"
    place.write_records("many.jsonl", MANY)
    began = time.time()
    with two_nodes(place, run, "data.train=many.jsonl", "train.steps=2", f"engine.timeout={timeout}") as nodes:
        codes = nodes.codes()
    assert codes == [0, 0], nodes.said(0) + nodes.said(1)
    [attempt] = about(run)["attempts"]
    assert (attempt["world_size"], attempt["cause"]) == (2, "finished")
    caches = (place.folder / "cache" / "distft" / "tokens").glob("*/meta.json")
    [cached] = [path for path in caches if json.loads(path.read_text())["records"] == MANY]
    assert cached.stat().st_mtime - began > timeout, "the work was too short to show anything"


def test_nodes_with_different_numbers_of_ranks_are_refused(place: Workplace) -> None:
    run = place.folder / "unequal"
    with two_nodes(place, run, ranks=(1, 2)) as nodes:
        assert nodes.codes(60.0) == [2, 2]
    said = "localhost has 2 ranks (GPUs) and 127.0.0.1, the first node, 1; all nodes of a job need the same number"
    assert said in nodes.said(1)
    assert about(run)["attempts"][0]["cause"].startswith(said)
    assert "Traceback" not in nodes.said(0) + nodes.said(1)


def test_an_export_that_is_cut_off_is_all_that_is_left_to_do(place: Workplace) -> None:
    run = place.folder / "cut-export"
    command = ("train", "recipe.yaml", "train.steps=5", "--run-dir", run, "--nproc", "2")
    with place.start(*command) as killed:
        process = export_of(killed)
        assert [name for name in ("distft-rank-0", "distft-rank-1") if children(killed.pid, name)] == []
        process.kill()
        ended = killed.end(60.0)
    assert ended.code == 1
    assert about(run)["state"] == "trained"
    assert about(run)["attempts"][0]["cause"] == "the export was killed by SIGKILL"
    assert not (run / "final").exists()
    trained = losses(run)
    assert sorted(trained) == [1, 2, 3, 4, 5]

    with place.start(*command) as stopped:
        process = export_of(stopped)
        stopped.send(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)
        assert stopped.end(60.0).code == 75
    assert about(run)["state"] == "preempted"
    assert not (run / "final").exists()

    ended = place.run(*command)
    assert ended.code == 0, ended.err
    assert (run / "final" / "adapter_model.safetensors").exists()
    assert losses(run) == trained
    for number in (2, 3):
        assert sorted(path.name for path in (run / "logs" / f"attempt-00{number}").iterdir()) == [
            "export.log",
            "node-0.log",
        ]
    assert place.run(*command).out.endswith("nothing to do\n")


SLOW_EXPORT = """\
import os, time
replace = os.replace
def slowly(*paths, **options):
    with open("/proc/self/comm") as file:
        time.sleep(3.0 * file.read().startswith("distft-export"))
    replace(*paths, **options)
os.replace = slowly
"""


@pytest.mark.long
def test_an_export_that_hangs_is_named(place: Workplace) -> None:
    run, slow = place.folder / "hung-export", place.folder / "slow-export"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW_EXPORT)
    environment = {"PYTHONPATH": ":".join(filter(None, [str(slow), os.environ.get("PYTHONPATH")]))}
    with place.start("train", "recipe.yaml", "train.steps=5", "--run-dir", run, environment=environment) as command:
        process = export_of(command, after=0.2)  # it beats then
        ended = command.end()
        assert not process.is_running()
    assert ended.code == 1
    assert "hang: the export on " in ended.err
    assert about(run)["state"] == "trained"


def test_variables_of_a_rank_in_a_shell_are_named(place: Workplace, unbroken: object) -> None:
    run = place.folder / "unbroken"
    before = (run / "metrics.jsonl").read_bytes()
    of_torchrun = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for what in (("train", "--run-dir", run), ("train", "recipe.yaml"), ("train", "recipe.yaml", "--run-dir", run)):
        with place.start(*what, environment=of_torchrun) as command:
            ended = command.end(60.0)
        assert ended.code == 2
        assert ended.sentence.startswith(
            "RANK is set (0), as torchrun or a script sets it for one of several processes"
        )
    left_over = {"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    with place.start("eval", run, environment=left_over) as command:
        ended = command.end(60.0)
    assert ended.code == 2
    assert ended.sentence.startswith(
        "RANK is 0 and WORLD_SIZE 2, but nothing like srun, torchrun or mpirun has started"
    )
    assert (run / "metrics.jsonl").read_bytes() == before


DPO = ("task={type: dpo, beta: 0.5}", "adapter={type: none}", "data.train=pairs.jsonl", "train.steps=3")


@pytest.mark.long
def test_a_reference_pass_that_is_stopped_goes_on(place: Workplace) -> None:
    pairs = [{"prompt": f"What of bike {i}?", "chosen": f"It rides {i} miles.", "rejected": "No."} for i in range(6000)]
    (place.folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    whole, cut = place.folder / "whole-reference", place.folder / "cut-reference"
    assert place.run("train", "recipe.yaml", *DPO, "--run-dir", whole, "--nproc", "2").code == 0
    command = ("train", "recipe.yaml", *DPO, "--run-dir", cut, "--nproc", "2")
    with place.start(*command) as stopped:
        until(lambda: "preferences: batch 1/" in stopped.err.read_text(), "the pass begins")
        time.sleep(0.3)
        stopped.send(signal.SIGTERM)
        assert stopped.end(60.0).code == 75
    with safe_open(cut / "reference.safetensors", "numpy") as file:
        assert 0 < len(file.get_tensor("keys")) < len(pairs)
    assert place.run(*command).code == 0
    assert (cut / "reference.safetensors").read_bytes() == (whole / "reference.safetensors").read_bytes()
    assert losses(cut) == losses(whole)
