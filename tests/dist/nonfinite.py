"""Ranks of a run whose base model gives NaN for one character, which is in one document only.

python -m tests.dist.nonfinite FOLDER CONFIG
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from distft.process.distributed import Ranks
from distft.errors import RunFailed
from distft.run.folder import RunDir
from tests.dist import scenario

STEPS, EVERY = 9, 2
LAYOUTS = [(stage, dtype) for stage in (0, 1, 2, 3) for dtype in ("fp32", "bf16") if (stage, dtype) != (0, "bf16")]


def trouble(run: Path) -> list[dict[str, Any]]:
    return [record for record in RunDir(run).records() if "non_finite" in record]


def no_weight_changes(folder: Path, config: Path, ranks: Ranks) -> None:
    """Under every stage and dtype: the step that is not taken leaves masters, moments and weights as they were."""
    for stage, dtype in LAYOUTS:
        run = folder / f"layout-{stage}-{dtype}"
        opened = scenario.open_run(run, config, ranks, f"engine.zero_stage={stage}", f"engine.dtype={dtype}")
        for _ in range(STEPS):
            before, count = opened.state(), opened.session.progress.non_finite
            opened.advance(1)
            if opened.session.progress.non_finite > count:
                scenario.same(before, opened.state())
        assert opened.step == STEPS
        opened.close()
        if ranks.first:
            [found] = trouble(run)
            assert found["action"] == "skip"
            assert "loss" in found["non_finite"]
            assert len(scenario.losses(run)) == STEPS - 1
            print(f"stage {stage}, {dtype}: {found}", flush=True)


def rollback_ends_as_skip_does(folder: Path, config: Path, ranks: Ranks) -> None:
    """Going back first trains the same steps again, to the same bits, and then passes the batch over."""
    states, opened = {}, None
    for action in ("skip", "rollback"):
        opened = scenario.open_run(folder / action, config, ranks, f"train.non_finite={action}")
        while opened.step < STEPS:
            opened.advance(1)
            if opened.step % EVERY == 0 and opened.step != opened.session.saved:
                opened.save()
        states[action] = opened.state()
        opened.close()
    scenario.same(states["skip"], states["rollback"])
    if ranks.first:
        [bad] = trouble(folder / "skip")
        assert bad["step"] > EVERY, "there is to be a checkpoint to go back to"
        assert [r["action"] for r in trouble(folder / "rollback")] == ["rollback", "skip"]
        assert {record["step"] for record in trouble(folder / "rollback")} == {bad["step"]}
        once, twice = scenario.losses(folder / "skip"), scenario.losses(folder / "rollback")
        assert {step: set(values) for step, values in twice.items()} == {s: set(v) for s, v in once.items()}


def budgets_and_stops(folder: Path, config: Path, ranks: Ranks) -> None:
    """Both name the document, on every rank."""
    bad = json.loads((folder / "bad.json").read_text())
    stop = scenario.open_run(folder / "stop", config, ranks, "train.non_finite=stop")
    with pytest.raises(
        RunFailed, match=rf"^the loss of step \d is nan \(documents of .*jsonl, counted from 0: .*\b{bad}\b"
    ):
        stop.advance(STEPS)
    stop.close()
    often = ("train.non_finite_budget=1", f"data.train={folder / 'twice.jsonl'}", "train.steps=40")
    used = scenario.open_run(folder / "budget", config, ranks, *often)
    with pytest.raises(RunFailed, match="train.non_finite_budget 1 is used up"):
        used.advance(40)
    used.close()


def main() -> None:
    folder, config = Path(sys.argv[1]), Path(sys.argv[2])
    ranks = scenario.join()
    no_weight_changes(folder, config, ranks)
    rollback_ends_as_skip_does(folder, config, ranks)
    budgets_and_stops(folder, config, ranks)


if __name__ == "__main__":
    main()
    scenario.leave()
