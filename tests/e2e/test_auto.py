"""Runs that leave micro-batch and recomputation to the plan: settled once, and kept by every later attempt."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.command import EVERY, STEPS, about, losses, until_step
from tests.e2e.conftest import Made

AUTO = ("train.micro_batch=auto", "model.activation_checkpointing=auto", "data.eval=eval.jsonl")


@pytest.fixture(scope="module")
def killed(unbroken: Made) -> Path:
    """Killed after its first checkpoint, on two ranks, which settle on as many rows as the unbroken run has."""
    place, run = unbroken.place, unbroken.place.folder / "auto"
    with place.start("train", "recipe.yaml", *AUTO, "--run-dir", run, "--nproc", "2") as command:
        until_step(command, run, EVERY + 5)
        command.send(signal.SIGKILL)
        command.process.wait()
        said = command.err.read_text() + command.out.read_text()
    assert "auto: train.micro_batch=2 model.activation_checkpointing=off, the most rows with the least" in said
    assert "MiB at most of " in said
    return run


def kept(run: Path) -> tuple[int, str]:
    found = json.loads((run / "batch.json").read_text())
    return found["micro_batch"], found["activation_checkpointing"]


def test_what_was_settled_is_kept_and_nothing_shows_in_the_losses(killed: Path, unbroken: Made) -> None:
    run, before = killed.with_name("auto-continued"), (killed / "batch.json").read_bytes()
    assert kept(killed) == (2, "off")
    assert "micro_batch: auto" in (killed / "config.yaml").read_text()
    shutil.copytree(killed, run)
    ended = unbroken.place.run("train", "recipe.yaml", *AUTO, "--run-dir", run, "--nproc", "2")
    assert ended.code == 0, ended.err
    assert "auto: train.micro_batch=2 model.activation_checkpointing=off, as this run has settled it" in ended.err
    assert (run / "batch.json").read_bytes() == before
    assert sorted(losses(run)) == list(range(1, STEPS + 1))
    expected = {step: found[-1:] for step, found in losses(unbroken.run).items()}
    assert {step: found[-1:] for step, found in losses(run).items()} == expected  # of explicit values, to the last bit


@pytest.mark.long
def test_other_ranks_keep_it_too(killed: Path, unbroken: Made) -> None:
    """One rank alone would have settled on four rows."""
    run = killed.with_name("auto-alone")
    shutil.copytree(killed, run)
    refused = unbroken.place.run("train", "recipe.yaml", *AUTO, "--run-dir", run, "--nproc", "3")
    assert refused.code == 2
    assert "train.global_batch 4 is not a multiple of micro_batch 2 x 3 ranks" in refused.sentence
    with unbroken.place.start("train", "recipe.yaml", *AUTO, "--run-dir", run, "--nproc", "1") as command:
        until_step(command, run, EVERY + 10)
        command.send(signal.SIGTERM)
        assert command.end(60.0).code == 75
    assert [one["world_size"] for one in about(run)["attempts"]] == [2, 1]
    assert kept(run) == (2, "off")
    ours, theirs = losses(run), losses(unbroken.run)
    assert max(ours) > EVERY + 5
    assert all(abs(ours[step][-1] - theirs[step][-1]) < 1e-5 for step in ours)
