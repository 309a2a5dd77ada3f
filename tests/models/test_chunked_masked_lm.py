"""Losses of heads that are told the hidden tokens, beside those of all logits, for encoders of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from distft.data.records import Document
from distft.tasks.masked_lm import Masked
from distft.tasks.shared.chunked_head import ChunkedHead, find
from distft.tasks.shared.padding import Inputs
from tests.models.test_chunked_head import compare

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

CPU = torch.device("cpu")
VOCABULARY = 97
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "bert": SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "roberta": SIZES | {"max_position_embeddings": 64, "pad_token_id": 1},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "modernbert": SIZES | {"reference_compile": False, "pad_token_id": 0, "global_attn_every_n_layers": 1},
}


class _Tokenizer:
    def __call__(self, *texts: str, **settings: object) -> dict[str, list[int]]:
        return {"input_ids": [2, 3], "token_type_ids": [0, 0]}


def document(seed: int) -> Document:
    chance = np.random.default_rng(seed)
    size = int(chance.integers(9, 30))
    special = np.zeros(size, bool)
    special[[0, -1]] = True
    columns = {"tokens": chance.integers(2, VOCABULARY, size).astype(np.int32), "types": np.zeros(size, np.uint8)}
    return Document({**columns, "special": special, "mask": np.array([4, VOCABULARY], np.int32)}, size, draw=seed)


@pytest.mark.parametrize("kind", MODELS)
def test_losses_and_gradients_are_those_of_all_logits(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **MODELS[kind])
    model: Any = AutoModelForMaskedLM.from_config(config, dtype=torch.float32).eval()
    whole, chunked = (Masked(0.5, Inputs(model, _Tokenizer())) for _ in range(2))
    head = find(model, 8, lambda vocabulary: chunked.few(model, vocabulary, CPU))
    assert isinstance(head, ChunkedHead), head
    chunked.head = head
    batch = whole.collate([[document(seed)] for seed in range(5)], CPU)
    assert len(batch.targets) > 3 * 8
    compare(model, whole, chunked, batch)
    compare(model, whole, chunked, whole.collate([[]], CPU))
    with torch.no_grad():
        expected, found = (task.predict(model, batch) for task in (whole, chunked))
    assert [one["right"] for one in found] == [one["right"] for one in expected]
    assert [one["loss"] for one in found] == pytest.approx([one["loss"] for one in expected], rel=1e-5)
