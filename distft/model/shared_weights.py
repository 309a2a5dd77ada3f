"""Weights that several modules of a model with an adapter share."""

from __future__ import annotations

from collections import Counter
from typing import Any

from distft.errors import UserError


def tied_target(model: Any) -> str | None:
    """A layer with an adapter whose weight is another layer's too (embeddings and the head)."""
    owners = _owners(model)
    layers = ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))
    return next((name for name, layer in layers if owners[id(layer.base_layer.weight)] > 1), None)


def check_merges(model: Any) -> None:
    """Raises UserError if merging the adapter would change a layer that has none."""
    if (tied := tied_target(model)) is not None:
        raise UserError(f"--merged: {tied} shares its weight with another layer, which would change too; leave it out")


def untied_copies(model: Any) -> bool:
    """Whether a module was trained as a copy (`modules_to_save`) and shares a weight with another one in the base."""
    owners = _owners(model)
    copied = (module.original_module for module in model.modules() if hasattr(module, "original_module"))
    return any(owners[id(weight)] > 1 for module in copied for weight in module.parameters())


def _owners(model: Any) -> Counter[int]:
    """How many modules have a weight, by its id."""
    return Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
