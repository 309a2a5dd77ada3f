"""A run that was begun before a default changed keeps what it was begun with."""

from __future__ import annotations

from pathlib import Path

import yaml

from distft.recipe.load import differences, dump, load, load_resolved
from tests.unit.recipes import recipe


def begun_earlier(folder: Path) -> Path:
    """A resolved recipe of a version without the key."""
    values = yaml.safe_load(dump(recipe()))
    del values["engine"]["grad_dtype"]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_run_begun_under_the_earlier_default_keeps_it(tmp_path: Path) -> None:
    stored = load_resolved(begun_earlier(tmp_path))
    assert stored.engine.grad_dtype == "bf16"
    assert recipe().engine.grad_dtype == "fp32"
    assert differences(stored, recipe()) == []
    # what continues it is written down, and read again as it is
    path = tmp_path / "again.yaml"
    path.write_text(dump(stored))
    assert load_resolved(path) == stored


def test_who_asks_for_the_new_default_is_told_that_it_differs(tmp_path: Path) -> None:
    stored = load_resolved(begun_earlier(tmp_path))
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe()))
    [found] = differences(stored, load(path, ["engine.grad_dtype=fp32"]))
    assert (found.key, found.old, found.new, found.rule) == ("engine.grad_dtype", "bf16", "fp32", "to be allowed")
