"""A recipe for tests that do not care what is in it."""

from __future__ import annotations

from typing import Any

from distft.recipe.schema import Recipe


def recipe(**sections: Any) -> Recipe:
    base = {"name": "x", "model": {"path": "/m"}, "data": {"train": "/d"}, "train": {"steps": 5}}
    return Recipe.model_validate(base | sections)
