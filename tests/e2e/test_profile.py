"""`distft train --profile`, and what is left of it."""

from __future__ import annotations

import json

import pytest

from tests.e2e.command import Workplace, about, checkpoints, eval_losses, losses
from tests.e2e.conftest import Made


@pytest.mark.long  # tests/dist/test_profiles.py compares the bits too, without kills
def test_a_profiled_run_that_is_killed_in_it_trains_the_same_bits(place: Workplace, unbroken: Made) -> None:
    """Rank 1 is killed in the middle of the profile; the next attempt takes one of its own."""
    run = place.folder / "profiled"
    args = ("train", "recipe.yaml", "data.eval=eval.jsonl", "--run-dir", run, "--nproc", "2")
    killed = {"DISTFT_FAILPOINT": "1/1:step 5"}
    with place.start(*args, "--profile", "4", "--max-restarts", "1", environment=killed) as command:
        ended = command.end()
    assert ended.code == 0, ended.err
    assert [attempt["exit_code"] == 0 for attempt in about(run)["attempts"]] == [False, True]
    assert ended.err.count("ms per step, steps 3 to 6") == 1
    assert {path.parent.name for path in run.glob("logs/*/profile.json")} == {"attempt-002"}
    assert (run / "profile.png").exists()
    assert {step: set(found) for step, found in losses(run).items()} == {
        step: set(found) for step, found in losses(unbroken.run).items()
    }
    assert eval_losses(run)[-1:] == eval_losses(unbroken.run)[-1:]
    kept, expected = (
        [file.read_bytes() for folder in checkpoints(path) for file in sorted(folder.glob("rank-*.safetensors"))]
        for path in (run, unbroken.run)
    )
    assert len(kept) == 4
    assert kept == expected
    shown = place.run("profile", run)
    assert shown.code == 0, shown.err
    found = json.loads((run / "logs" / "attempt-002" / "profile.json").read_text())
    assert f"memory is fullest in {found['fullest']['phase']}" in shown.out
    assert "has no profile; ask for one with --profile N" in place.run("profile", unbroken.run).sentence


def test_a_trace_of_nothing_is_refused(place: Workplace) -> None:
    ended = place.run("train", "recipe.yaml", "--trace", "--run-dir", "traced")
    assert (ended.code, ended.sentence[:19]) == (2, "--trace keeps the t")
    assert not (place.folder / "traced").exists()
