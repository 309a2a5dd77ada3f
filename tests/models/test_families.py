"""Peaks of activations of whole recipes, beside those of the product's own loss on the product's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models.making import ANSWERS, CLASSIFIES, MASKED, TAGS, several
from tests.models.small_models import Sizes
from tests.models.steps import Trial, step

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs

SPOKEN, SPELT, WRITTEN = {"type": "speech-seq2seq"}, {"type": "ctc"}, {"type": "seq2seq-lm"}
PREFERS: dict[str, Any] = {"type": "dpo"}
ONE: Sizes = {
    "vocab_size": 500,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
BOTH: Sizes = {
    "vocab_size": 500,
    "d_model": 256,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 1024,
    "decoder_ffn_dim": 1024,
    "max_position_embeddings": 512,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
T5: Sizes = {"vocab_size": 500, "d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 2, "num_heads": 4}
HEARS: Sizes = ONE | {
    "vocab_size": 40,
    "conv_dim": [128] * 7,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,  # masks at places that have to be known
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WHISPER = BOTH | {
    "num_mel_bins": 20,
    "max_source_positions": 300,
    "max_target_positions": 120,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LORA = {"type": "lora", "r": 8}
AGAIN = (("activation_checkpointing", True),)
TRIALS = {
    "t5": Trial("t5", T5, WRITTEN),
    "t5, checkpointing": Trial("t5", T5, WRITTEN, model=AGAIN),
    "t5, gated, LoRA, checkpointing": Trial(
        "t5", T5 | {"feed_forward_proj": "gated-gelu"}, WRITTEN, adapter=LORA, model=AGAIN
    ),
    "bart, checkpointing": Trial("bart", BOTH, WRITTEN, model=AGAIN),
    "mbart, LoRA": Trial("mbart", BOTH, WRITTEN, adapter=LORA),
    "mbart, LoRA, checkpointing": Trial("mbart", BOTH, WRITTEN, adapter=LORA, model=AGAIN),
    "marian": Trial("marian", BOTH, WRITTEN),
    "wav2vec2": Trial("wav2vec2", HEARS, SPELT, tokens=6000),
    "wav2vec2, checkpointing": Trial("wav2vec2", HEARS, SPELT, tokens=6000, model=AGAIN),
    "wav2vec2, LoRA": Trial("wav2vec2", HEARS, SPELT, tokens=6000, adapter=LORA),
    "wav2vec2 large": Trial("wav2vec2", HEARS | LARGE, SPELT, tokens=6000),
    "wav2vec2 large, checkpointing": Trial("wav2vec2", HEARS | LARGE, SPELT, tokens=6000, model=AGAIN),
    "whisper, LoRA, checkpointing": Trial("whisper", WHISPER, SPOKEN, adapter=LORA, model=AGAIN),
    "bert": Trial("bert", ONE, MASKED),
    "bert, answers": Trial("bert", ONE, ANSWERS),
    "bert, tags with a CRF": Trial("bert", ONE, TAGS | {"crf": True}, tokens=64),
    "bert, LoRA, classes": Trial("bert", ONE, CLASSIFIES, adapter=LORA),
    "bert, classes and hidden words": Trial("bert", ONE, several(CLASSIFIES, MASKED)),
    "llama, preferences": Trial("llama", ONE, PREFERS),
    "llama, LoRA, preferences": Trial("llama", ONE, PREFERS, adapter=LORA),
}


@pytest.mark.parametrize("name", TRIALS)
def test_peak_is_that_of_the_products_loss(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, counted = step(TRIALS[name], tmp_path, monkeypatch)
    assert expected == pytest.approx(counted, rel=0.03)
