"""A recipe for tests that do not care what is in it."""

from __future__ import annotations

from typing import Any

from distft.recipe.schema import Recipe


def recipe(**sections: Any) -> Recipe:
    base = {"name": "x", "model": {"path": "/m"}, "data": {"train": "/d"}, "train": {"steps": 5}}
    wanted = base | sections
    return Recipe.model_validate({**wanted, "data": {"today": "2026-01-31", **wanted["data"]}})
