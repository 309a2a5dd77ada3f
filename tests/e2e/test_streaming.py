"""`data.streaming` by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.command import Workplace, losses


@pytest.mark.long
def test_a_run_that_streams_is_verified(place: Workplace) -> None:
    """Killed at random steps it equals one that was not."""
    ended = place.run(
        "verify-resume", "recipe.yaml", "data.streaming=true", "--kills", "2", "--steps", "20", "--nproc", "2"
    )
    assert ended.code == 0, ended.err
    lines = [line.split() for line in ended.out.splitlines()]
    assert [line[-1] for line in lines if line and line[-1] in ("equal", "EQUAL")] == ["equal"] * 4


def test_encoding_ahead_changes_nothing(place: Workplace, tmp_path: Path) -> None:
    settings = ("data.streaming=true", "train.steps=20", f"data.cache={tmp_path}")  # others encode these data too
    runs = [place.folder / name for name in ("eager", "prepared")]
    for run in runs:
        ended = place.run("train", "recipe.yaml", *settings, "--run-dir", run, "--nproc", "1")
        assert ended.code == 0, ended.err
        how = "are in the token cache" if run == runs[1] else "are encoded while training runs"
        assert f"records, which {how}" in ended.err
        assert place.run("encode", "recipe.yaml", *settings).code == 0
    assert losses(runs[0]) == losses(runs[1])
    assert len(losses(runs[0])) == 20


def test_what_does_not_stream_is_refused(place: Workplace) -> None:
    ended = place.run(
        "train", "recipe.yaml", "data.streaming=true", "train.steps=null", "train.epochs=1", "--nproc", "1"
    )
    assert ended.code == 2
    assert "data.streaming: needs train.steps" in ended.sentence
