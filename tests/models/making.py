"""A recipe over a configuration, and the model that distft makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from distft.model.base_model import shape
from distft.plan.architecture import Weight
from distft.recipe.schema import Recipe
from distft.tasks.registry import specs_of
from tests.models.small_models import Sizes
from tests.unit.recipes import recipe

CAUSAL: dict[str, Any] = {"type": "causal-lm"}
MASKED: dict[str, Any] = {"type": "masked-lm"}
CLASSIFIES: dict[str, Any] = {"type": "sequence-classification", "labels": ["a", "b", "c"]}
TAGS: dict[str, Any] = {"type": "token-classification", "labels": ["O", "B-x", "I-x"]}
ANSWERS: dict[str, Any] = {"type": "question-answering"}


def several(*sections: dict[str, Any]) -> dict[str, Any]:
    """Several tasks, each by the name of its type."""
    return {"type": "multi-task", "tasks": {one["type"]: {"task": one, "train": "/d"} for one in sections}}


def written(folder: Path, model_type: str, sizes: Sizes) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **sizes}))
    return folder


def recipe_of(folder: Path, task: dict[str, Any], **sections: Any) -> Recipe:
    data = {"data": {}} if task["type"] == "multi-task" else {}
    return recipe(model={"path": str(folder)}, task=task, **data, **sections)


def made(folder: Path, wanted: Recipe) -> Any:
    """The model as distft makes it, without memory."""
    labels = {part.name or "label": getattr(part.task, "labels", None) or ["number"] for part in wanted.parts()}
    with torch.device("meta"):
        return shape(folder, wanted, specs_of(wanted), labels)


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def planned(weights: Iterable[Weight]) -> dict[str, tuple[int, ...]]:
    found = [(weight.name, weight.shape) for weight in weights]
    assert len(dict(found)) == len(found), "a weight is named twice"
    return dict(found)
