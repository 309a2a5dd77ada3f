"""Every recipe in configs/ loads, and is small enough to read at a glance."""

from __future__ import annotations

from pathlib import Path

import pytest

from distft.recipe.load import load

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_recipe_loads(config: Path) -> None:
    assert load(config, []).name == config.stem
    assert len(config.read_text().splitlines()) < 40


def test_there_are_recipes() -> None:
    assert {"demo", "demo-base", "gsm8k-lora"} <= {config.stem for config in CONFIGS}
