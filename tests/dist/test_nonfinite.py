"""Numbers gone wrong for real: a base model with a token whose embedding is NaN."""

from __future__ import annotations

import json
import random
from pathlib import Path

from safetensors.torch import load_file, save_file

from distft.tasks import causal_lm
from distft.recipe.tasks import CausalLM
from distft.recipe.schema import Model, ModelInit
from distft.data.sources import Source
from distft.model.base_model import load_processor
from distft.model.random_init import create
from tests.dist.launch import run_ranks
from tests.dist.nonfinite import trouble

RECIPE = """
model: {{path: {base}}}
data: {{train: {data}, row_tokens: 64, packing: false, group_by_length: false, cache: {cache}}}
adapter: {{type: lora, r: 4}}
train: {{steps: 9, lr: 1.0e-3, global_batch: 8, micro_batch: 2, non_finite: skip}}
engine: {{zero_stage: 2, dtype: fp32}}
"""
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def records(number: int, bad: set[int]) -> str:
    chance = random.Random(0)
    words = ["bike", "lamp", "button", "wheel", "mud", "rain", "city", "road"]
    lines = [
        {"prompt": f"What of {i}?", "completion": " ".join(chance.choices(words, k=6)) + (" ☃" if i in bad else "")}
        for i in range(number)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def test_steps_that_are_not_finite(tmp_path: Path) -> None:
    clean, data = tmp_path / "clean.jsonl", tmp_path / "train.jsonl"
    clean.write_text(records(80, set()))
    base = tmp_path / "base"
    sizes = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False}
    spec = causal_lm.spec(CausalLM(), {})
    create(ModelInit(architecture="llama", vocab_size=300, config=sizes), spec.model, (), [(spec, Source(str(clean)))], base)
    tokenizer = load_processor(base, Model(path=str(base)), spec.model.family)
    [snowman, *_] = tokenizer("☃", add_special_tokens=False)["input_ids"]
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"][snowman] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    data.write_text(records(80, {57}))
    (tmp_path / "twice.jsonl").write_text(records(80, {13, 57}))
    (tmp_path / "bad.json").write_text("57")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=base, data=data, cache=tmp_path / "cache"))
    # The ranks assert what is in tests/dist/nonfinite.py; a failure there is one here.
    run_ranks("tests.dist.nonfinite", 2, str(tmp_path), str(tmp_path / "recipe.yaml"))
    assert [record["action"] for record in trouble(tmp_path / "skip")] == ["skip"]
    assert [record["action"] for record in trouble(tmp_path / "rollback")] == ["rollback", "skip"]
    assert all(57 in record["samples"] for record in trouble(tmp_path / "rollback"))
