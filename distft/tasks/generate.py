"""Texts written by a model, by transformers' own generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Decoding:
    """How to choose the next token. `temperature` 0: always the likeliest one."""

    max_tokens: int = 256
    temperature: float = 0.0


def unwrapped(model: Any) -> Any:
    """The module that can generate, below DeepSpeed's engine."""
    return getattr(model, "module", model)


def sharded(module: torch.nn.Module) -> bool:
    """Whether ZeRO-3 holds the weights: then all ranks must go on until the last of them has ended."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def continued(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[str]:
    """What a decoder writes after each prompt."""
    module = unwrapped(model)
    device = next(module.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[filler] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    sampling = (
        {"do_sample": True, "temperature": decoding.temperature} if decoding.temperature else {"do_sample": False}
    )
    out = module.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=decoding.max_tokens,
        eos_token_id=stops(module, tokenizer),
        pad_token_id=filler,
        synced_gpus=sharded(module),
        **sampling,
    )
    return [text.strip() for text in tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)]


def stops(module: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's end token, and those the model's own configuration names (chat models have several)."""
    own = module.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(own if isinstance(own, list) else [own] if own is not None else [])})
