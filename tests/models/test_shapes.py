"""Names and shapes of all weights are those of the model that distft makes, on the device "meta"."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, T5ForConditionalGeneration

from distft.errors import UserError
from distft.plan.families.catalogue import CATALOGUE
from distft.plan.shapes import architecture_of
from tests.models import published
from tests.models.making import (
    ANSWERS,
    CAUSAL,
    CLASSIFIES,
    MASKED,
    TAGS,
    made,
    planned,
    recipe_of,
    several,
    shapes,
    written,
)
from tests.models.small_models import (
    DECODERS,
    ENCODERS,
    LISTENERS,
    TRANSLATORS,
    WRITERS,
    Sizes,
)

TASKS: list[tuple[dict[str, Any], dict[str, list[Sizes]]]] = [
    (CAUSAL, DECODERS),
    (MASKED, ENCODERS),
    (CLASSIFIES, ENCODERS),
    (TAGS, ENCODERS),
    (ANSWERS, ENCODERS),
    ({"type": "seq2seq-lm"}, TRANSLATORS),
    ({"type": "ctc"}, LISTENERS),
    ({"type": "speech-seq2seq"}, WRITERS),
]


def cases() -> Iterator[Any]:
    for task, models in TASKS:
        for model_type, variants in models.items():
            for number, sizes in enumerate(variants):
                yield pytest.param(task, model_type, sizes, id=f"{task['type']}-{model_type}-{number}")


def test_every_model_type_that_is_known_is_tried() -> None:
    tried = {model_type for _, models in TASKS for model_type in models}
    assert tried == set(CATALOGUE)
    assert len(tried) >= 30


@pytest.mark.parametrize(("task", "model_type", "sizes"), list(cases()))
def test_weights_are_those_of_the_model(task: dict[str, Any], model_type: str, sizes: Sizes, tmp_path: Path) -> None:
    wanted = recipe_of(written(tmp_path, model_type, sizes), task)
    model = made(tmp_path, wanted)
    architecture = architecture_of(wanted)
    found = planned(architecture.named())
    if task is MASKED and model_type in ("xlm-roberta", "camembert"):  # there the tied matrix has its name in the head
        found["lm_head.decoder.weight"] = found.pop("roberta.embeddings.word_embeddings.weight")
    assert found == shapes(model)
    assert architecture.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert architecture.exact
    assert {one.name for one in architecture.named() if one.frozen} == {
        name for name, parameter in model.named_parameters() if not parameter.requires_grad
    }
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    output = model.get_output_embeddings()
    assert architecture.tied == (output is not None and id(output.weight) in tables)


@pytest.mark.parametrize(("task", "config", "parameters"), published.MODELS)
def test_well_known_models_have_as_many_weights_as_they_were_published_with(
    task: str, config: Sizes, parameters: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert architecture_of(recipe_of(tmp_path, {"type": task})).parameters == parameters


@pytest.mark.long
@pytest.mark.parametrize(("task", "config", "parameters"), published.MODELS)
def test_weights_of_well_known_models(task: str, config: Sizes, parameters: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    wanted = recipe_of(tmp_path, {"type": task})
    assert planned(architecture_of(wanted).named()) == shapes(made(tmp_path, wanted))


def test_70_billion_weights_take_no_time(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(published.LLAMA_70B))
    wanted = recipe_of(tmp_path, {"type": "causal-lm"})
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        architecture_of(wanted)
        taken.append(time.perf_counter() - begun)
    assert min(taken) < 0.02


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "mistral", "mixtral", "gpt2", "gpt_neox", "bloom"])
@pytest.mark.parametrize("task", [CLASSIFIES, TAGS, ANSWERS], ids=lambda task: task["type"])
def test_decoders_have_heads_of_tasks(model_type: str, task: dict[str, Any], tmp_path: Path) -> None:
    wanted = recipe_of(written(tmp_path, model_type, DECODERS[model_type][0]), task)
    assert planned(architecture_of(wanted).named()) == shapes(made(tmp_path, wanted))


@pytest.mark.parametrize(
    "task",
    [{**TAGS, "crf": True}, {"type": "sequence-classification", "kind": "regression"}],
    ids=["crf", "regression"],
)
def test_heads_are_those_of_the_task(task: dict[str, Any], tmp_path: Path) -> None:
    wanted = recipe_of(written(tmp_path, "bert", ENCODERS["bert"][0]), task)
    model = made(tmp_path, wanted)
    assert planned(architecture_of(wanted).named()) == shapes(model)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "deberta-v2", "albert"])
@pytest.mark.parametrize("order", [("mask", "class", "tag"), ("tag", "class", "mask")], ids=["mask", "tag"])
def test_several_tasks_have_one_encoder(model_type: str, order: tuple[str, ...], tmp_path: Path) -> None:
    sections = {"mask": MASKED, "class": CLASSIFIES, "tag": {**TAGS, "crf": True}}
    task = several(*(sections[name] for name in order))
    wanted = recipe_of(written(tmp_path, model_type, ENCODERS[model_type][0]), task)
    assert planned(architecture_of(wanted).named()) == shapes(made(tmp_path, wanted))


@pytest.mark.parametrize(("task", "model_type", "sizes"), list(cases()))
def test_a_configuration_says_the_same_when_transformers_has_written_it(
    task: dict[str, Any], model_type: str, sizes: Sizes, tmp_path: Path
) -> None:
    wanted = recipe_of(written(tmp_path, model_type, sizes), task)
    given = architecture_of(wanted)
    config = AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
    assert architecture_of(wanted) == given


@pytest.mark.filterwarnings("ignore")
def test_t5_whose_head_is_in_its_file_keeps_it(tmp_path: Path) -> None:
    wanted = recipe_of(written(tmp_path, "t5", TRANSLATORS["t5"][0]), {"type": "seq2seq-lm"})
    model = T5ForConditionalGeneration(AutoConfig.from_pretrained(tmp_path))
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    save_file(weights | {"lm_head.weight": torch.ones(100, 32)}, tmp_path / "model.safetensors", {"format": "pt"})
    written(tmp_path, "t5", TRANSLATORS["t5"][0] | {"tie_word_embeddings": False})
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert planned(architecture_of(wanted).named()) == shapes(loaded)
    assert "lm_head.weight" in shapes(loaded)
    assert not architecture_of(wanted).tied


def test_labels_that_the_recipe_leaves_to_the_data(tmp_path: Path) -> None:
    wanted = recipe_of(written(tmp_path, "bert", ENCODERS["bert"][0]), {"type": "sequence-classification"})
    assert planned(architecture_of(wanted, {"label": 7}).named())["classifier.weight"] == (7, 32)
    assert architecture_of(wanted, {"label": 7}).vocabulary == 7
    assert planned(architecture_of(wanted).named())["classifier.weight"] == (2, 32)


def test_sizes_that_make_no_model_are_refused_in_a_sentence(tmp_path: Path) -> None:
    wanted = recipe_of(
        written(tmp_path, "llama", DECODERS["llama"][0] | {"num_attention_heads": 0}), {"type": "causal-lm"}
    )
    with pytest.raises(UserError, match=r"the config.json of .* has sizes that make no llama model .*; correct them"):
        architecture_of(wanted)
