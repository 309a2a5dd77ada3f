"""Adapters onto a model; the layers are PEFT's."""

from __future__ import annotations

import difflib
from typing import Any

import torch

from distft.config import Adapter, Lora, NoAdapter
from distft.errors import UserError


def import_code(adapter: Adapter) -> None:
    """Import what `attach` will import."""
    if not isinstance(adapter, NoAdapter):
        import peft  # noqa: F401


def attach(model: Any, adapter: Adapter, base: str | None) -> Any:
    """The model with a fresh adapter, or itself where there is none. What is not the adapter's is frozen.

    Args:
        base: local path or hub id that is written into the adapter's configuration.

    Raises:
        UserError: no module of the model has a name among `adapter.targets`.
    """
    if isinstance(adapter, NoAdapter):
        return model
    from peft import LoraConfig, get_peft_model

    check_targets(model, adapter)
    # PEFT takes a string for a regular expression, unless it is this one.
    single = isinstance(adapter.targets, str) and adapter.targets != "all-linear"
    names = [adapter.targets] if single else adapter.targets
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,  # PEFT divides it by r: any number will do
        lora_dropout=adapter.dropout,
        target_modules=names,
        task_type="CAUSAL_LM",
    )
    # The same seed on every rank and at every start: a checkpoint replaces these values, a first attempt keeps them.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(adapter.seed)
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def check_targets(model: Any, adapter: Lora) -> None:
    if adapter.targets == "all-linear":
        return
    wanted = [adapter.targets] if isinstance(adapter.targets, str) else adapter.targets
    names = {name for name, _ in model.named_modules() if name}
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            leaves = sorted({name.rsplit(".", 1)[-1] for name in names} - {str(i) for i in range(1000)})
            near = difflib.get_close_matches(target, leaves, n=3, cutoff=0.4) or leaves[:8]
            raise UserError(f"adapter.targets: the model has no module '{target}'; it has {', '.join(near)}")


def parameter_counts(model: Any) -> tuple[int, int]:
    """(trainable, total) numbers of elements, whole even where ZeRO-3 shards them."""
    sizes = [(p.requires_grad, getattr(p, "ds_numel", p.numel())) for p in model.parameters()]
    return sum(n for trainable, n in sizes if trainable), sum(n for _, n in sizes)
