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
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, ends: Sequence[str] = ()
) -> list[str]:
    """What a decoder writes after each prompt.

    Args:
        ends: texts that end a turn, beside the tokenizer's own end.
    """
    module = unwrapped(model)
    device = next(module.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    tokens, texts = parted_ends(tokenizer, ends)
    text_ends = {"stop_strings": texts, "tokenizer": tokenizer} if texts else {}
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
        eos_token_id=stops(module, tokenizer, tokens),
        pad_token_id=filler,
        synced_gpus=sharded(module),
        **sampling,
        **text_ends,
    )
    answers = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return [min((answer.partition(end)[0] for end in texts), key=len, default=answer).strip() for answer in answers]


def parted_ends(tokenizer: Any, ends: Sequence[str]) -> tuple[list[int], list[str]]:
    """Of texts that end a turn, those that are single tokens, as tokens, and the others."""
    ids = {end: tokenizer(end, add_special_tokens=False)["input_ids"] for end in ends}
    return [i[0] for i in ids.values() if len(i) == 1], [end for end, i in ids.items() if len(i) > 1]


def stops(module: Any, tokenizer: Any, tokens: Sequence[int] = ()) -> list[int]:
    """The tokenizer's end token, those the model's own configuration names (chat models have several), and `tokens`."""
    own = module.generation_config.eos_token_id
    known = own if isinstance(own, list) else [own] if own is not None else []
    return sorted({tokenizer.eos_token_id, *known, *tokens})
