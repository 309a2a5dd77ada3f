"""Tokens that a model has not."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from distft.data.records import Document
from distft.errors import UserError
from distft.model.vocabulary import Limits, Vocabulary
from distft.tasks.shared.tokenizer_family import DECODER

MODEL = SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding(10, 2))


def tokenizer(pad: int) -> Any:
    """Twelve tokens, where the model has ten; a mask that no text has is no harm, a filler is."""
    others = dict.fromkeys([f"{name}_token_id" for name in ("bos", "eos", "cls", "sep", "unk")])
    found: Any = MagicMock(name_or_path="m", pad_token_id=pad, mask_token_id=11, tokenizer=None, **others)
    found.tokenizer, found.__len__.return_value = found, 12
    return found


@pytest.mark.parametrize(("pad", "largest", "fits"), [(0, 9, True), (0, 10, False), (10, 9, False)])
def test_tokens_that_the_model_has_not_are_told(pad: int, largest: int, fits: bool) -> None:
    document = Document({"tokens": np.array([3, largest], np.int32), "weights": np.array([99], np.int64)}, 2)
    with nullcontext() if fits else pytest.raises(UserError, match=r"in m has token 10, .* only 10 embeddings"):
        Vocabulary.of(tokenizer(pad), MODEL, DECODER).check(largest)
    with nullcontext() if fits else pytest.raises(UserError, match=r"in m has token 10, .* only 10 embeddings"):
        Limits.of(tokenizer(pad), MODEL, DECODER).check([document])


def test_sources_that_are_too_long_are_told() -> None:
    Limits(Vocabulary("m"), 64).check([Document({}, 64)])
    with pytest.raises(UserError, match="a source has 65 tokens, but the encoder 64 positions"):
        Limits(Vocabulary("m"), 64).check([Document({}, 3), Document({}, 65)])
