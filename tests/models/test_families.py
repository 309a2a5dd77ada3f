"""Peaks of activations of whole recipes, beside those of the product's own loss on the product's own model."""

from __future__ import annotations

from dataclasses import replace
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
AGAIN = (("activation_checkpointing", "full"),)
SELECTIVE = (("activation_checkpointing", "selective"),)
EAGER = (("attention", "eager"),)
LARGE_HEARS = LARGE | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "mask_time_prob": 0.0,
}
T5_LARGE = {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16}
ADALORA = {"type": "adalora", "init_r": 8, "target_r": 4}
DROPS = LORA | {"dropout": 0.1}
CAUSAL = {"type": "causal-lm"}
LATENT = ONE | {
    "n_routed_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 48,
    "moe_intermediate_size": 256,
}
MIXTRAL = ONE | {"num_local_experts": 8, "num_key_value_heads": 2, "num_experts_per_tok": 2}
TRIALS = {  # quick ones
    "t5, checkpointing": Trial("t5", T5, WRITTEN, model=AGAIN),
    "mbart, LoRA, checkpointing": Trial("mbart", BOTH, WRITTEN, adapter=LORA, model=AGAIN),
    "wav2vec2": Trial("wav2vec2", HEARS, SPELT, tokens=6000),
    "wav2vec2 large, checkpointing": Trial("wav2vec2", HEARS | LARGE, SPELT, tokens=6000, model=AGAIN),
    "wav2vec2 large, every second layer": Trial("wav2vec2", HEARS | LARGE, SPELT, tokens=6000, model=SELECTIVE),
    "llama, LoRA with dropout, every second layer": Trial("llama", ONE, CAUSAL, adapter=DROPS, model=SELECTIVE),
    "bert, classes and hidden words": Trial("bert", ONE, several(CLASSIFIES, MASKED)),
    "llama, LoRA, preferences": Trial("llama", ONE, PREFERS, adapter=LORA),
    "llama, AdaLoRA": Trial("llama", ONE, CAUSAL, adapter=ADALORA),
    "neox, LoRA with dropout": Trial("gpt_neox", ONE, CAUSAL, adapter=DROPS),
    "deepseek_v3, LoRA": Trial("deepseek_v3", LATENT, CAUSAL, adapter=LORA),
}
MORE = {  # that take longer
    "t5": Trial("t5", T5, WRITTEN),
    "t5, gated, LoRA, checkpointing": Trial(
        "t5", T5 | {"feed_forward_proj": "gated-gelu"}, WRITTEN, adapter=LORA, model=AGAIN
    ),
    "bart": Trial("bart", BOTH, WRITTEN),
    "bart, every second layer": Trial("bart", BOTH, WRITTEN, model=SELECTIVE),
    "t5, every second layer": Trial("t5", T5, WRITTEN, model=SELECTIVE),
    "whisper, LoRA, every second layer": Trial("whisper", WHISPER, SPOKEN, adapter=LORA, model=SELECTIVE),
    "wav2vec2, every second layer": Trial("wav2vec2", HEARS, SPELT, tokens=6000, model=SELECTIVE),
    "bert, every second layer": Trial("bert", ONE, MASKED, model=SELECTIVE),
    "deepseek_v3, every second layer": Trial("deepseek_v3", LATENT, CAUSAL, model=SELECTIVE),
    "mixtral, every second layer": Trial("mixtral", MIXTRAL, CAUSAL, model=SELECTIVE),
    "bart, checkpointing": Trial("bart", BOTH, WRITTEN, model=AGAIN),
    "mbart, LoRA": Trial("mbart", BOTH, WRITTEN, adapter=LORA),
    "marian": Trial("marian", BOTH, WRITTEN),
    "marian, checkpointing": Trial("marian", BOTH, WRITTEN, model=AGAIN),
    "wav2vec2, checkpointing": Trial("wav2vec2", HEARS, SPELT, tokens=6000, model=AGAIN),
    "wav2vec2, LoRA": Trial("wav2vec2", HEARS, SPELT, tokens=6000, adapter=LORA),
    "wav2vec2 large": Trial("wav2vec2", HEARS | LARGE, SPELT, tokens=6000),
    "whisper": Trial("whisper", WHISPER, SPOKEN),
    "whisper, LoRA, checkpointing": Trial("whisper", WHISPER, SPOKEN, adapter=LORA, model=AGAIN),
    "bert": Trial("bert", ONE, MASKED),
    "bert, answers": Trial("bert", ONE, ANSWERS),
    "bert, tags with a CRF": Trial("bert", ONE, TAGS | {"crf": True}, tokens=64),
    "bert, LoRA, classes": Trial("bert", ONE, CLASSIFIES, adapter=LORA),
    "llama, preferences": Trial("llama", ONE, PREFERS),
    "neox, eager": Trial("gpt_neox", ONE, CAUSAL, model=EAGER),
    "phi": Trial("phi", ONE, CAUSAL),
    "glm": Trial("glm", ONE | {"head_dim": 64}, CAUSAL),
    "deepseek_v2": Trial("deepseek_v2", LATENT, CAUSAL),
    "deepseek_v3, checkpointing": Trial("deepseek_v3", LATENT, CAUSAL, model=AGAIN),
    "mixtral, LoRA": Trial("mixtral", MIXTRAL, CAUSAL, adapter=LORA),
}
PUBLISHED = {
    "wav2vec2 base": Trial("wav2vec2", {"mask_time_prob": 0.0}, SPELT, 8, 15000),
    "wav2vec2 large": Trial("wav2vec2", LARGE_HEARS, SPELT, 8, 15000),
    "T5 large": Trial("t5", T5_LARGE, WRITTEN, 8, 512),
    "BART large": Trial("bart", {"decoder_start_token_id": 2}, WRITTEN, 8, 512),
    "NeoX 20 B, four layers": Trial("gpt_neox", {"num_hidden_layers": 4}, CAUSAL, 4, 2048),
    "DeepSeek-V3, four layers": Trial("deepseek_v3", {"num_hidden_layers": 4}, CAUSAL, 1, 4096),
}
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, checkpointing": {"model": AGAIN},
    "LoRA": {"adapter": {"type": "lora", "r": 16}},
    "LoRA, checkpointing": {"adapter": {"type": "lora", "r": 16}, "model": AGAIN},
}


@pytest.mark.parametrize("name", TRIALS)
def test_peak_is_that_of_the_products_loss(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, counted = step(TRIALS[name], tmp_path, monkeypatch)
    assert expected == pytest.approx(counted, rel=0.03)


@pytest.mark.long
@pytest.mark.parametrize("name", MORE)
def test_more_peaks(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, counted = step(MORE[name], tmp_path, monkeypatch)
    assert expected == pytest.approx(counted, rel=0.03)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes(name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = replace(PUBLISHED[name], **WAYS[way])
    expected, counted = step(trial, tmp_path, monkeypatch)
    size = f"{trial.rows} x {trial.tokens}"
    print(f"\n| {name} | {way} | {size} | {expected / 1e9:.2f} | {counted / 1e9:.2f} | {expected / counted - 1:+.2%} |")
    assert expected == pytest.approx(counted, rel=0.03)
