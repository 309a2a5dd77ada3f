"""Runs that several tests look at. Starting one costs ten seconds, so each is made once and copied where it changes."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.command import EVERY, Ended, Workplace, until_step


@dataclass(frozen=True)
class Made:
    """A run folder, and what the command that made it said."""

    place: Workplace
    run: Path
    ended: Ended

    def copy(self, name: str) -> Path:
        """The run as it is, in another folder."""
        return Path(shutil.copytree(self.run, self.place.folder / name))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("work"))
    place.write_records("eval.jsonl", 700, seed=1)
    return place


@pytest.fixture(scope="session")
def unbroken(place: Workplace) -> Made:
    """A LoRA run with dropout that nobody disturbed, on two ranks."""
    run = place.folder / "unbroken"
    ended = place.run("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2")
    assert ended.code == 0, ended.err
    return Made(place, run, ended)


@pytest.fixture(scope="session")
def preempted(place: Workplace) -> Made:
    """The same run, told to stop after its first checkpoint. For looking at and copying only."""
    run = place.folder / "preempted"
    with place.start("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2") as command:
        until_step(command, run, EVERY + 5)
        command.send(signal.SIGTERM)
        return Made(place, run, command.end(60.0))


@pytest.fixture(scope="session")
def full(place: Workplace) -> Made:
    """A finished run of the whole model, whose embeddings are tied, on data with a record longer than a row."""
    data = place.write_records("long.jsonl", 30)
    with open(data, "a") as file:
        file.write('{"prompt": "Tell me all.", "completion": "' + "bike lamp mud " * 40 + '"}\n')
    run = place.folder / "full"
    overrides = ("data.train=long.jsonl", "adapter={type: none}", "train.steps=6", "engine.dtype=bf16")
    ended = place.run("train", "recipe.yaml", *overrides, "--run-dir", run, "--nproc", "1")
    assert ended.code == 0, ended.err
    return Made(place, run, ended)
