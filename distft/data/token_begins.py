"""Tokens of a text and where each begins, from the backend of a fast tokenizer: its wrapper costs short texts time."""

from __future__ import annotations

from functools import cache
from typing import Any


def with_begins(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Token ids without special tokens, and the character each begins at: what the call of the tokenizer gives."""
    if not _hands_on(tokenizer.__class__):
        out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(out["input_ids"]), [begin for begin, _ in out["offset_mapping"]]
    backend = tokenizer.backend_tokenizer
    # State that other calls may leave behind, or the tokenizer's file
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    found = backend.encode(text, add_special_tokens=False)
    return found.ids, [begin for begin, _ in found.offsets]


@cache
def _hands_on(kind: Any) -> bool:
    """Whether tokenizers of this class give texts to the backend as they are. Some cut or change them first."""
    from transformers import PreTrainedTokenizerFast

    return all(getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in ("__call__", "_encode_plus"))
