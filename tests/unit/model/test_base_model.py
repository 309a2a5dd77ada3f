"""Models as they are loaded for a task: a head that lacks is made anew, always the same; nothing else may lack."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from distft.errors import UserError
from distft.model import base_model
from distft.recipe.schema import Recipe
from distft.tasks.registry import specs_of

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LABELS = {"label": ["a", "b", "c"]}
CLASSES = {"type": "sequence-classification"}
MULTI = {
    "type": "multi-task",
    "tasks": {
        "mood": {"task": CLASSES, "train": "x"},
        "tags": {"task": {"type": "token-classification", "crf": True}, "train": "x"},
        "lm": {"task": {"type": "masked-lm"}, "train": "x"},
    },
}


def recipe(task: dict[str, Any], seed: int = 0, dtype: str = "fp32", **model: Any) -> Recipe:
    values: dict[str, Any] = {"task": task, "model": {"path": "/m", **model}, "train": {"steps": 1, "seed": seed}}
    values |= {} if task["type"] == "multi-task" else {"data": {"train": "/d"}}
    return Recipe.model_validate({**values, "engine": {"dtype": dtype}})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A masked BERT, a causal Llama and a T5."""
    made = {}
    sizes: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0}
    for name, auto, more in (
        ("bert", AutoModelForMaskedLM, BERT),
        ("llama", AutoModelForCausalLM, {**BERT, "bos_token_id": None, "eos_token_id": None}),
        ("t5", AutoModelForSeq2SeqLM, {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}),
    ):
        made[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(1)
        auto.from_config(AutoConfig.for_model(name, **sizes, **more)).save_pretrained(made[name])
    return made


def loaded(folder: Path, wanted: Recipe, labels: Any = LABELS) -> Any:
    return base_model.load(folder, wanted, specs_of(wanted), labels)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_head_that_lacks_is_the_same_at_every_start(folders: dict[str, Path], dtype: str) -> None:
    found = []
    for start in range(2):
        torch.manual_seed(start)  # whatever transformers draws is replaced
        found.append(weights(loaded(folders["bert"], recipe(CLASSES, dtype=dtype))))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert {value.dtype for value in found[0].values()} == {base_model.DTYPES[dtype]}
    other = weights(loaded(folders["bert"], recipe(CLASSES, seed=1, dtype=dtype)))
    apart = {name for name in other if not torch.equal(other[name], found[0][name])}
    assert apart == {"classifier.weight", "bert.pooler.dense.weight"}
    stored = load_file(folders["bert"] / "model.safetensors")
    for name, value in found[0].items():
        if name in stored:
            torch.testing.assert_close(value.float(), stored[name], atol=0 if dtype == "fp32" else 1e-2, rtol=0)


def test_a_head_is_as_bert_begins_and_knows_its_labels(folders: dict[str, Path]) -> None:
    model = loaded(folders["bert"], recipe(CLASSES))
    assert model.classifier.weight.shape == (3, 16)
    assert 0.01 < model.classifier.weight.std().item() < 0.03
    assert not model.classifier.bias.any()
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_another_number_of_labels_replaces_the_head(folders: dict[str, Path], tmp_path: Path) -> None:
    loaded(folders["bert"], recipe(CLASSES)).save_pretrained(tmp_path)
    again = loaded(tmp_path, recipe(CLASSES))
    assert torch.equal(again.classifier.weight, loaded(folders["bert"], recipe(CLASSES)).classifier.weight)
    two = loaded(tmp_path, recipe(CLASSES), {"label": ["x", "y"]})
    assert two.classifier.weight.shape == (2, 16)
    assert 0.01 < two.classifier.weight.std().item() < 0.03
    assert torch.equal(two.bert.pooler.dense.weight, again.bert.pooler.dense.weight)


@pytest.mark.parametrize("task", [CLASSES, {"type": "masked-lm"}])
def test_weights_that_lack_beside_the_head_are_told(
    folders: dict[str, Path], tmp_path: Path, task: dict[str, Any]
) -> None:
    stored = load_file(folders["bert"] / "model.safetensors")
    lost = "bert.encoder.layer.1.output.dense.weight"
    save_file({k: v for k, v in stored.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((folders["bert"] / "config.json").read_text())
    with pytest.raises(UserError, match=rf"lacks weights, among them {re.escape(lost)}; download"):
        loaded(tmp_path, recipe(task))


def test_a_decoder_may_lack_nothing_unless_it_classifies(folders: dict[str, Path], tmp_path: Path) -> None:
    stored = load_file(folders["llama"] / "model.safetensors")
    (tmp_path / "config.json").write_text((folders["llama"] / "config.json").read_text())
    save_file(
        {k: v for k, v in stored.items() if k != "lm_head.weight"}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"lacks weights, among them lm_head\.weight"):
        loaded(tmp_path, recipe({"type": "causal-lm"}), {})
    assert loaded(tmp_path, recipe(CLASSES)).score.weight.shape == (3, 16)


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [
        ("t5", {"type": "causal-lm"}, "is an encoder-decoder model (t5), but task.type causal-lm needs"),
        ("bert", {"type": "seq2seq-lm"}, "is not an encoder-decoder model (bert), which task.type seq2seq-lm needs"),
        ("llama", {"type": "seq2seq-lm"}, "is not an encoder-decoder model (llama)"),
        ("llama", {"type": "masked-lm"}, "cannot be loaded for task.type masked-lm"),
    ],
)
def test_an_architecture_that_does_not_fit_is_one_sentence(
    folders: dict[str, Path], name: str, task: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        loaded(folders[name], recipe(task), {})
    assert str(caught.value).startswith(f"model.path: {folders[name]}")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_readable_configuration(tmp_path: Path) -> None:
    for content in (None, "{"):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=r"model\.path: .*config\.json cannot be read"):
            loaded(tmp_path, recipe(CLASSES))


def test_several_tasks_share_one_encoder_and_have_heads_of_their_own(folders: dict[str, Path]) -> None:
    labels = {"mood": ["a", "b"], "tags": ["O", "B-X", "I-X"]}
    first, second = (loaded(folders["bert"], recipe(MULTI), labels) for _ in range(2))
    parts = first.parts
    assert parts["mood"].bert is parts["tags"].bert is parts["lm"].bert
    assert parts["mood"].bert.pooler is not None  # one of them needs it
    assert [parts[name].classifier.out_features for name in ("mood", "tags")] == [2, 3]
    assert parts["tags"].crf is not None
    mine, theirs = weights(first), weights(second)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_language_model_among_several_tasks_stays_tied_to_the_encoder(folders: dict[str, Path]) -> None:
    parts = loaded(folders["bert"], recipe(MULTI), {"mood": ["a", "b"], "tags": ["O", "B-X"]}).parts
    assert parts["lm"].cls.predictions.decoder.weight is parts["lm"].bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("task", [CLASSES, {"type": "masked-lm"}, {"type": "token-classification", "crf": True}, MULTI])
def test_the_shape_is_that_of_the_model(folders: dict[str, Path], task: dict[str, Any]) -> None:
    wanted = recipe(task)
    labels = {"mood": ["a", "b"], "tags": ["O", "B-X"]} if task is MULTI else LABELS
    with torch.device("meta"):
        shape = base_model.shape(folders["bert"], wanted, specs_of(wanted), labels)
    model = loaded(folders["bert"], wanted, labels)
    assert {name: p.shape for name, p in shape.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert {str(parameter.device) for parameter in shape.parameters()} == {"meta"}
