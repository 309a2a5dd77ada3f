"""Text generation with transformers' `generate`."""

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


def continued(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, mark: str = ""
) -> list[str]:
    """What a decoder writes after each prompt.

    Args:
        mark: ends a turn, beside the tokenizer's own end.
    """
    module = unwrapped(model)
    device = next(module.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    end = tokenizer(mark, add_special_tokens=False)["input_ids"] if mark else []
    text_end = {"stop_strings": [mark], "tokenizer": tokenizer} if len(end) > 1 else {}
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
        eos_token_id=stops(module, tokenizer, end),
        pad_token_id=filler,
        synced_gpus=sharded(module),
        **sampling,
        **text_end,
    )
    texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return [(text.partition(mark)[0] if text_end else text).strip() for text in texts]


def stops(module: Any, tokenizer: Any, end: Sequence[int] = ()) -> list[int]:
    """The tokenizer's end token, those the model's own configuration names (chat models have several), and `end`
    where a single token ends a turn."""
    own = module.generation_config.eos_token_id
    known = own if isinstance(own, list) else [own] if own is not None else []
    return sorted({tokenizer.eos_token_id, *known, *(end if len(end) == 1 else ())})
