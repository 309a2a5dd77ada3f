"""Architectures without sdpa, or which let packed documents see each other, train as recipes are by default."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import Workplace, losses

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

DECODER = "hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8"
EXPERTS = "intermediate_size: 32, num_local_experts: 4, num_experts_per_tok: 2"
DEBERTA = (
    "hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4, relative_attention: true"
)
SHAPES = {
    "gemma2": f"{{{DECODER}, intermediate_size: 64, sliding_window: 32, max_position_embeddings: 64}}",
    "gpt_oss": f"{{{DECODER}, {EXPERTS}, sliding_window: 32}}",
    "deberta-v2": f"{{{DEBERTA}, pos_att_type: [p2c, c2p], position_buckets: 16, share_att_key: true}}",
}
EAGER = "model.attention=eager"
RECIPE = """\
task: {{type: {task}}}
model: {{init: {{architecture: {architecture}, vocab_size: 300, config: {shape}}}}}
data: {{train: {data}, row_tokens: 64}}
train: {{steps: 6, lr: 1.0e-2, schedule: constant, global_batch: 4, micro_batch: 2}}
engine: {{zero_stage: 2, dtype: fp32}}
"""


def recipe(place: Workplace, architecture: str, task: str = "causal-lm", data: str = "train.jsonl") -> Path:
    path = place.folder / f"{architecture}.yaml"
    shape = SHAPES[architecture]
    path.write_text(RECIPE.format(task=task, architecture=architecture, shape=shape, data=data))
    return path


def test_a_decoder_without_sdpa_trains_on_packed_rows(place: Workplace) -> None:
    run = place.folder / "gemma2"
    ended = place.run("train", recipe(place, "gemma2"), "--run-dir", run)
    assert ended.code == 0, ended.err
    assert json.loads((run / "attention.json").read_text()) == {"varlen": True}
    saved = json.loads((run / "final" / "config.json").read_text())
    assert "varlen" not in json.dumps(saved)
    assert not (run / "packing.json").exists()
    assert len(losses(run)) == 6


@pytest.mark.long
def test_an_encoder_without_sdpa_trains(place: Workplace) -> None:
    records = ({"text": f"the {'cat' if i % 2 else 'dog'} {i}", "label": "ab"[i % 2]} for i in range(20))
    (place.folder / "labels.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    run, written = place.folder / "deberta", recipe(place, "deberta-v2", "sequence-classification", "labels.jsonl")
    ended = place.run("train", written, "--run-dir", run)
    assert ended.code == 0, ended.err
    assert json.loads((run / "final" / "config.json").read_text())["position_buckets"] == 16
    refused = place.run("train", written, "--run-dir", place.folder / "refused", "model.attention=sdpa")
    assert refused.code == 2
    assert refused.sentence.startswith("model.attention: DebertaV2ForSequenceClassification does not support sdpa")


@pytest.fixture(scope="module")
def mixing(place: Workplace) -> Path:
    """A run of a model that mixes documents, with the attention that its class has."""
    run = place.folder / "mixing"
    ended = place.run("train", recipe(place, "gpt_oss"), "--run-dir", run, EAGER)
    assert ended.code == 0, ended.err
    assert "see each other, so each row holds one" in ended.err
    return run


def test_a_model_that_mixes_documents_gets_rows_of_one(place: Workplace, mixing: Path) -> None:
    assert json.loads((mixing / "packing.json").read_text()) == {"packing": False}
    assert len(losses(mixing)) == 6


@pytest.mark.long
def test_rows_of_one_are_those_without_packing(place: Workplace, mixing: Path) -> None:
    """Also after a restart."""
    written, apart, broken = recipe(place, "gpt_oss"), place.folder / "apart", place.folder / "broken"
    assert place.run("train", written, "--run-dir", apart, "data.packing=false", EAGER).code == 0
    assert losses(apart) == losses(mixing)

    assert place.run("train", written, "--run-dir", broken, "train.steps=3", EAGER).code == 0
    again = place.run("train", written, "--run-dir", broken, "--allow", "train.steps", EAGER)
    assert again.code == 0, again.err
    assert losses(broken) == losses(mixing)

    refused = place.run("train", written, "--run-dir", place.folder / "refused", "data.packing=true", EAGER)
    assert refused.code == 2
    assert "data.packing: this model lets documents in one row see each other" in refused.sentence
