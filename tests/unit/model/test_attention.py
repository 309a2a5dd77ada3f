"""`model.attention`: auto takes what the model's class supports, and a wrong wish is told in a sentence."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from distft.errors import UserError
from distft.model import attention, base_model
from distft.recipe.schema import Recipe
from distft.tasks.registry import specs_of

CAUSAL, CLASSES, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModelForSeq2SeqLM"
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}


def recipe(wanted: str = "auto", dtype: str = "fp32", task: str = "causal-lm", **model: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "task": {"type": task},
            "model": {"path": "/m", "attention": wanted, **model},
            "data": {"train": "/d"},
            "train": {"steps": 1},
            "engine": {"dtype": dtype},
        }
    )


def folder_of(path: Path, architecture: str, **sizes: Any) -> Path:
    AutoConfig.for_model(architecture, **sizes).save_pretrained(path)
    return path


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if flash attention were installed beside a GPU, which cannot be had here."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.mark.parametrize(
    ("architecture", "auto_class", "expected"),
    [
        ("llama", CAUSAL, "sdpa"),
        ("qwen3_moe", CAUSAL, "sdpa"),
        ("gemma2", CAUSAL, "eager"),
        ("gpt_oss", CAUSAL, "eager"),
        ("bloom", CAUSAL, "eager"),
        ("mpt", CAUSAL, "eager"),
        ("bert", CLASSES, "sdpa"),
        ("deberta-v2", CLASSES, "eager"),
        ("deberta", CLASSES, "eager"),
        ("t5", SEQ2SEQ, "sdpa"),
    ],
)
def test_auto_takes_what_the_class_supports(tmp_path: Path, architecture: str, auto_class: str, expected: str) -> None:
    assert attention.choose(folder_of(tmp_path, architecture), recipe(), auto_class) == expected


@pytest.mark.parametrize(
    ("architecture", "auto_class", "expected"),
    [
        ("llama", CAUSAL, "flash_attention_2"),
        ("gemma2", CAUSAL, "flash_attention_2"),
        ("gpt_oss", CAUSAL, "eager"),  # it takes flash attention by kernels of its own only
        ("bloom", CAUSAL, "eager"),
        ("t5", SEQ2SEQ, "sdpa"),
    ],
)
def test_auto_takes_flash_attention_where_the_class_supports_it(
    tmp_path: Path, flash: None, architecture: str, auto_class: str, expected: str
) -> None:
    folder = folder_of(tmp_path, architecture)
    assert attention.choose(folder, recipe(dtype="bf16"), auto_class) == expected
    assert attention.choose(folder, recipe(dtype="fp32"), auto_class) != "flash_attention_2"


def test_a_wish_that_the_class_cannot_fulfil_is_told(tmp_path: Path) -> None:
    bloom, t5 = (folder_of(tmp_path / name, name) for name in ("bloom", "t5"))
    with pytest.raises(UserError, match=r"^model.attention: BloomForCausalLM does not support sdpa, only eager; set"):
        attention.choose(bloom, recipe("sdpa"), CAUSAL)
    with pytest.raises(
        UserError, match="T5ForConditionalGeneration does not support flash_attention_2, only eager and"
    ):
        attention.choose(t5, recipe("flash_attention_2"), SEQ2SEQ)
    assert attention.choose(bloom, recipe("eager"), CAUSAL) == "eager"
    with pytest.raises(UserError, match=r"^model.attention: "):  # before all data are encoded
        attention.check(bloom, recipe("sdpa"), specs_of(recipe("sdpa")))


def test_a_model_inside_another_counts_too(tmp_path: Path) -> None:
    """An encoder that has no sdpa, beside a decoder that has."""
    inner = {"decoder": AutoConfig.for_model("bert", is_decoder=True, add_cross_attention=True).to_dict()}
    for name, expected in (("bert", "sdpa"), ("big_bird", "eager")):
        inner["encoder"] = AutoConfig.for_model(name).to_dict()
        folder = folder_of(tmp_path / name, "encoder-decoder", **inner)
        assert attention.choose(folder, recipe(), SEQ2SEQ) == expected


CODE = """
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own"


class Plain(PreTrainedModel):
    config_class = OwnConfig


class Better(Plain):
    _supports_sdpa = True
"""


@pytest.mark.parametrize(("name", "expected"), [("Plain", "eager"), ("Better", "sdpa")])
def test_code_that_comes_with_a_model_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = tmp_path / f"own-{name}"
    folder.mkdir()
    (folder / "own.py").write_text(CODE)
    settings = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", CAUSAL: f"own.{name}"}}
    (folder / "config.json").write_text(json.dumps(settings))
    assert attention.choose(folder, recipe(trust_remote_code=True), CAUSAL) == expected


def test_models_without_sdpa_are_loaded_and_it_is_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
    for name, auto in (("gemma2", AutoModelForCausalLM), ("llama", AutoModelForCausalLM)):
        auto.from_config(AutoConfig.for_model(name, **sizes)).save_pretrained(tmp_path / name)
    deberta = AutoConfig.for_model("deberta-v2", **SIZES)
    AutoModelForSequenceClassification.from_config(deberta).save_pretrained(tmp_path / "deberta")
    for name, task, said in (
        ("gemma2", "causal-lm", "model.attention auto: Gemma2ForCausalLM does not support sdpa.*would support flash"),
        (
            "deberta",
            "sequence-classification",
            "DebertaV2ForSequenceClassification does not support sdpa, so attention",
        ),
        ("llama", "causal-lm", None),
    ):
        wanted = recipe(task=task)
        model = base_model.load(tmp_path / name, wanted, specs_of(wanted), {"label": ["a", "b"]})
        note = attention.cost(model, wanted)
        assert (note is None) == (said is None)
        assert said is None or (note is not None and re.search(said, note))
        assert attention.cost(model, recipe("eager")) is None  # who asks for it knows
