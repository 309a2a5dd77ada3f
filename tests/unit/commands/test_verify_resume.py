"""What `verify-resume` calls equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distft.checkpoint import store
from distft.commands.verify_resume import PARTS, compared, show_comparison
from distft.run.folder import RunDir


def made(folder: Path, loss: float = 0.5, sample: int = 7, weight: float = 1.0, moment: float = 2.0) -> RunDir:
    """A run of two steps, the second of which was trained twice; the last time with these values."""
    run = RunDir(folder)
    run.create("test", "")
    records = [(1, 0.75), (2, 0.5), (2, loss)]
    run.metrics.write_text("".join(json.dumps({"step": s, "loss": v, "grad_norm": 1.0}) + "\n" for s, v in records))
    for attempt, samples in ((1, 7), (2, sample)):
        run.attempt_logs(attempt).mkdir()
        line = json.dumps({"step": 2, "micro_batch": 0, "samples": [samples]})
        (run.attempt_logs(attempt) / "rank-0.samples.jsonl").write_text(f'{line}\n{{"step": 3, "mic')
    store.prepare_stage(run.checkpoints, 2, needed=0)
    values = {"w|0|master": weight, "w|0|exp_avg": moment, "w|0|exp_avg_sq": 3.0}
    tensors = [(name, torch.tensor([value])) for name, value in values.items()]
    path = store.stage_folder(run.checkpoints, 2) / "rank-00000.safetensors"
    store.commit(run.checkpoints, 2, [store.write_tensors(path, tensors)])
    return run


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({}, None),
        ({"loss": 0.5000000001}, "losses and gradient norms"),
        ({"sample": 8}, "sample ids of micro-batches"),
        ({"weight": 1.0000001}, "weights (masters)"),
        ({"moment": 2.0000002}, "moments"),
    ],
)
def test_one_bit_is_a_difference(tmp_path: Path, changed: dict[str, float], what: str | None) -> None:
    whole, broken = made(tmp_path / "whole"), made(tmp_path / "broken", **changed)  # type: ignore[arg-type]
    found = [compared(name, of(whole), of(broken)) for name, of in PARTS.items()]
    assert [one.what for one in found if one.different] == ([what] if what else [])
    assert all(one.number for one in found)
    assert show_comparison(found, broken, [1]) is (what is None)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"loss": 0.5002, "weight": 1.0005, "moment": 2.001}, None),
        ({"loss": 0.502}, "losses and gradient norms"),
        ({"sample": 8}, "sample ids of micro-batches"),
        ({"weight": 1.01}, "weights (masters)"),
        ({"moment": -2.0}, "moments"),
    ],
)
def test_only_numbers_have_a_tolerance(tmp_path: Path, changed: dict[str, float], what: str | None) -> None:
    whole, broken = made(tmp_path / "whole"), made(tmp_path / "broken", **changed)  # type: ignore[arg-type]
    found = [compared(name, of(whole), of(broken), tolerance=1e-3) for name, of in PARTS.items()]
    assert [one.what for one in found if one.different] == ([what] if what else [])


def test_nothing_to_compare_is_not_equal(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    assert not show_comparison([compared("nothing", {}, {})], run, [])
