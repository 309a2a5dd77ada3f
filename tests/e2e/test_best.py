"""The best checkpoint is kept and exported, and a run ends early, also where it was broken on the way."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from tests.e2e.command import Workplace, records, until_step

RUN = ("train", "recipe.yaml", "data.eval=held-out.jsonl", "adapter={type: none}", "checkpoint={every: 100, keep: 1}")


def evaluations(run: Path) -> dict[int, float]:
    return {record["step"]: record["eval_loss"] for record in records(run) if "eval_loss" in record}


def kept(run: Path) -> list[int]:
    return sorted(int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*"))


def exported(run: Path) -> int:
    return int(json.loads((run / "final" / "distft.json").read_text())["step"])


def test_patience_ends_a_run_and_the_best_is_exported(place: Workplace) -> None:
    """A learning rate that ruins the model: the first evaluations are the best. Killed once on the way."""
    place.write_records("held-out.jsonl", 8, seed=1)
    command = (*RUN, "train.lr=3.0", "train.best=loss", "train.eval_every=2", "train.patience=3", "train.steps=40")
    run = place.folder / "patience"
    with place.start(*command, "--run-dir", run) as started:
        until_step(started, run, 5)
        started.send(signal.SIGKILL)
        started.end()
    ended = place.run(*command, "--run-dir", run)
    assert ended.code == 0, ended.err
    losses = evaluations(run)
    last = max(losses)
    best = min((step for step in losses if step), key=losses.__getitem__)
    assert last < 40
    assert last - best == 3 * 2
    assert exported(run) == best
    assert kept(run) == [best, last]
    assert f"best checkpoint: step {best}, loss {losses[best]:.4f}" in ended.err
    again = place.run(*command, "--run-dir", run)
    assert again.code == 0
    assert max(evaluations(run)) == last


def test_a_stop_in_the_last_evaluation_hides_no_best_checkpoint(place: Workplace) -> None:
    place.write_records("held-out.jsonl", 3000, seed=1)  # enough for the stop to come within the evaluation
    command = (*RUN, "train.best=loss", "train.eval_every=5", "train.steps=10")
    run = place.folder / "stopped-in-evaluation"
    with place.start(*command, "--run-dir", run) as started:
        until_step(started, run, 10)
        started.send(signal.SIGTERM)
        ended = started.end()
    assert ended.code == 75, ended.err
    assert 10 not in evaluations(run)
    ended = place.run(*command, "--run-dir", run)
    assert ended.code == 0, ended.err
    losses = evaluations(run)
    assert losses[10] < losses[5]
    assert exported(run) == 10
