"""What is trained and added is what `distft.model.adapters.attach` trains and adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distft.model.adapters import attach
from distft.plan.shapes import architecture_of
from distft.plan.trained import trained
from distft.tasks.multi_task import whole
from distft.tasks.registry import specs_of
from tests.models.making import ANSWERS, CAUSAL, CLASSIFIES, MASKED, TAGS, made, planned, recipe_of, several, written
from tests.models.small_models import DECODERS, ENCODERS, LISTENERS, TRANSLATORS, WRITERS, Sizes

MODELS = DECODERS | ENCODERS | TRANSLATORS | LISTENERS | WRITERS
LORA: dict[str, Any] = {"type": "lora", "r": 4}
DORA = LORA | {"dora": True}
ADALORA: dict[str, Any] = {"type": "adalora", "init_r": 4, "target_r": 2}
TIED: Sizes = DECODERS["llama"][0] | {"tie_word_embeddings": True}
MIXTURES = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "gpt_oss",
    "granitemoe",
    "phimoe",
    "deepseek_v2",
    "deepseek_v3",
]
ATTENTION = ["q_proj", "v_proj"]

CASES: list[tuple[str, dict[str, Any], dict[str, Any], Sizes | None]] = [
    ("llama", CAUSAL, {"type": "none"}, None),
    ("whisper", {"type": "speech-seq2seq"}, {"type": "none"}, None),
    ("marian", {"type": "seq2seq-lm"}, {"type": "none"}, None),
    ("marian", {"type": "seq2seq-lm"}, {"type": "partial", "train": ["*.embed_positions.*"]}, None),
    ("llama", CAUSAL, {"type": "partial", "train": ["model.layers.1.*", "*norm.weight"]}, None),
    ("bert", CLASSIFIES, {"type": "partial", "train": ["classifier.*", "bert.pooler.dense.bias"]}, None),
    ("llama", CAUSAL, LORA, None),
    ("llama", CAUSAL, LORA, TIED),
    ("llama", CAUSAL, LORA | {"rslora": True, "targets": "q_proj"}, None),
    ("llama", CAUSAL, LORA | {"targets": ["layers.1.self_attn.q_proj", "down_proj"]}, None),
    ("llama", CAUSAL, DORA | {"targets": [*ATTENTION, "embed_tokens", "lm_head"]}, None),
    ("llama", CAUSAL, LORA | {"targets": ATTENTION, "modules_to_save": ["embed_tokens", "lm_head"]}, None),
    ("llama", CAUSAL, LORA | {"modules_to_save": ["mlp"]}, None),
    ("llama", CAUSAL, LORA | {"targets": ATTENTION, "modules_to_save": ["embed_tokens"]}, TIED),
    ("llama", CAUSAL, LORA | {"targets": [*ATTENTION, "lm_head"]}, TIED),
    ("llama", CAUSAL, {"type": "partial", "train": ["lm_head.*"]}, TIED),
    ("llama", CAUSAL, ADALORA, None),
    ("llama", CAUSAL, ADALORA | {"targets": ATTENTION, "modules_to_save": ["norm"]}, None),
    ("llama", CLASSIFIES, LORA, None),
    ("phi3", CAUSAL, LORA, None),
    ("phi", CAUSAL, DORA, None),
    ("gemma2", CAUSAL, LORA, None),
    ("gpt2", CAUSAL, LORA, None),
    ("gpt_neox", CAUSAL, LORA, None),
    ("falcon", CAUSAL, ADALORA, None),
    ("opt", CAUSAL, LORA, MODELS["opt"][1]),
    ("bloom", CLASSIFIES, DORA, None),
    ("bert", MASKED, LORA, None),
    ("bert", MASKED, LORA | {"modules_to_save": ["cls"]}, None),
    ("bert", CLASSIFIES, DORA, None),
    ("bert", CLASSIFIES, LORA | {"targets": ["query", "dense"]}, None),
    ("roberta", ANSWERS, LORA, None),
    ("roberta", MASKED, ADALORA, None),
    ("distilbert", MASKED, LORA, None),
    ("electra", MASKED, LORA, None),
    ("albert", CLASSIFIES, LORA, None),
    ("albert", MASKED, ADALORA, None),
    ("modernbert", MASKED, LORA, None),
    ("modernbert", CLASSIFIES, LORA, None),
    ("deberta-v2", CLASSIFIES, LORA, MODELS["deberta-v2"][1]),
    ("deberta-v2", TAGS | {"crf": True}, LORA, None),
    ("bert", several(MASKED, CLASSIFIES, TAGS | {"crf": True}), LORA, None),
    ("deberta-v2", several(CLASSIFIES, ANSWERS), LORA, None),
    ("t5", {"type": "seq2seq-lm"}, LORA, None),
    ("bart", {"type": "seq2seq-lm"}, DORA, None),
    ("wav2vec2", {"type": "ctc"}, LORA, None),
    ("whisper", {"type": "speech-seq2seq"}, ADALORA, None),
    ("whisper", {"type": "speech-seq2seq"}, DORA | {"targets": ["q_proj", "conv1", "embed_positions"]}, None),
    ("deepseek_v3", CAUSAL, LORA | {"targets": ["gate_proj", "up_proj", "down_proj", "q_a_proj"]}, None),
    ("deepseek_v3", CAUSAL, LORA | {"targets": ["kv_b_proj"]}, None),
    ("mixtral", CAUSAL, DORA | {"targets": ATTENTION}, None),
    ("deepseek_v3", CLASSIFIES, LORA, None),
    ("deepseek_v3", CAUSAL, LORA, None),
    *((name, CAUSAL, LORA, None) for name in MIXTURES),
    *((name, CAUSAL, LORA | {"routers": True}, None) for name in MIXTURES),
    *((name, CAUSAL, ADALORA, None) for name in ("mixtral", "qwen2_moe", "phimoe")),
]


@pytest.mark.filterwarnings("ignore")  # PEFT warns of much that is meant here
@pytest.mark.parametrize(("model_type", "task", "adapter", "sizes"), CASES)
def test_trained_weights_are_those_that_attach_trains(
    model_type: str, task: dict[str, Any], adapter: dict[str, Any], sizes: Sizes | None, tmp_path: Path
) -> None:
    wanted = recipe_of(written(tmp_path, model_type, sizes or MODELS[model_type][0]), task, adapter=adapter)
    model = made(tmp_path, wanted)
    with torch.device("meta"):
        attached = attach(model, wanted.adapter, whole(specs_of(wanted)), None, 100)
    found = trained(architecture_of(wanted), wanted)
    assert planned((*found.own, *found.added)) == {
        name: tuple(parameter.shape) for name, parameter in attached.named_parameters() if parameter.requires_grad
    }
    assert found.parameters == sum(p.numel() for p in attached.parameters() if p.requires_grad)
