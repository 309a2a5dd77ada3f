"""`distft verify-resume`, as a user would try a recipe before it is sent to a cluster."""

from __future__ import annotations

from tests.e2e.command import Workplace


def test_a_recipe_is_verified(place: Workplace) -> None:
    ended = place.run("verify-resume", "recipe.yaml", "--kills", "1", "--steps", "12", "--nproc", "1")
    assert ended.code == 0, ended.err
    lines = [line.split() for line in ended.out.splitlines()]
    assert [line[-1] for line in lines if line and line[-1] in ("equal", "EQUAL")] == ["equal"] * 4
    assert "killed after steps " in ended.out


def test_a_recipe_that_cannot_run_is_told(place: Workplace) -> None:
    ended = place.run("verify-resume", "recipe.yaml", "data.train=nowhere.jsonl", "--nproc", "1")
    assert ended.code == 2
    assert "the run failed (exit code 2)" in ended.sentence
    assert "nowhere.jsonl" in ended.sentence
