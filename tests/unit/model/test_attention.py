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
from distft.run.folder import RunDir
from distft.tasks.registry import specs_of

AUTO_CLASS = "AutoModelForCausalLM"
CAUSAL, CLASSES, SEQ2SEQ = "causal-lm", "sequence-classification", "seq2seq-lm"
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


def chosen(folder: Path, wanted: Recipe, by_document: bool = True) -> str:
    [spec] = specs_of(wanted).values()
    return attention.choose(folder, wanted, spec.model, by_document)


def folder_of(path: Path, architecture: str, **sizes: Any) -> Path:
    AutoConfig.for_model(architecture, **sizes).save_pretrained(path)
    return path


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if flash attention were installed beside a GPU, which cannot be had here."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)


@pytest.mark.parametrize(
    ("architecture", "task", "expected"),
    [
        ("llama", CAUSAL, "varlen"),
        ("llama", "dpo", "varlen"),
        ("llama", CLASSES, "sdpa"),
        ("qwen3_moe", CAUSAL, "varlen"),
        ("gemma2", CAUSAL, "varlen"),
        ("gpt_oss", CAUSAL, "varlen"),
        ("stablelm", CAUSAL, "sdpa"),  # its class has no way to take other attention
        ("bloom", CAUSAL, "eager"),
        ("mpt", CAUSAL, "eager"),
        ("bert", CLASSES, "varlen"),
        ("bert", CAUSAL, "varlen"),
        ("distilbert", "token-classification", "varlen"),
        ("roberta", "question-answering", "varlen"),
        ("modernbert", "masked-lm", "varlen"),
        ("mpnet", CLASSES, "eager"),
        ("bart", CLASSES, "sdpa"),  # its decoder looks back alone
        ("deberta-v2", CLASSES, "eager"),
        ("deberta", CLASSES, "eager"),
        ("bart", SEQ2SEQ, "varlen"),
        ("marian", SEQ2SEQ, "varlen"),
        ("m2m_100", SEQ2SEQ, "varlen"),
        ("t5", SEQ2SEQ, "varlen"),
        ("longt5", SEQ2SEQ, "eager"),
        ("led", SEQ2SEQ, "eager"),
        ("bart", CAUSAL, "sdpa"),
        ("whisper", "speech-seq2seq", "sdpa"),
        ("wav2vec2", "ctc", "sdpa"),
    ],
)
def test_auto_takes_what_the_class_supports(tmp_path: Path, architecture: str, task: str, expected: str) -> None:
    assert chosen(folder_of(tmp_path, architecture), recipe(task=task)) == expected


@pytest.mark.parametrize(("architecture", "expected"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_a_run_that_began_before_keeps_its_attention(tmp_path: Path, architecture: str, expected: str) -> None:
    """It has a checkpoint and no trial; one whose trial went wrong is the same."""
    folder, run = folder_of(tmp_path / "base", architecture), RunDir(tmp_path / "run")
    assert attention.takes_documents(run, starts=True)  # it begins
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    (run.checkpoints / "step-00000001" / "meta.json").write_text("{}")
    assert run.newest_commit() == 1
    for trial, found in ((None, False), (False, False), (True, True)):
        if trial is not None:
            attention.keep_trial(run, trial)
        for starts in (True, False):
            assert attention.takes_documents(run, starts) == found
    assert chosen(folder, recipe(), by_document=False) == expected
    run.attention.write_text("{")
    with pytest.raises(UserError, match=r"attention\.json cannot be read"):
        attention.takes_documents(run, starts=True)


@pytest.mark.parametrize(
    ("architecture", "task", "expected"),
    [
        ("llama", CAUSAL, "flash_attention_2"),
        ("gemma2", CAUSAL, "flash_attention_2"),
        ("gpt_oss", CAUSAL, "varlen"),  # it takes flash attention by kernels of its own only
        ("bloom", CAUSAL, "eager"),
        ("bart", SEQ2SEQ, "flash_attention_2"),
        ("t5", SEQ2SEQ, "sdpa"),
    ],
)
def test_auto_takes_flash_attention_where_the_class_supports_it(
    tmp_path: Path, flash: None, architecture: str, task: str, expected: str
) -> None:
    folder = folder_of(tmp_path, architecture)
    assert chosen(folder, recipe(dtype="bf16", task=task)) == expected
    assert chosen(folder, recipe(dtype="fp32", task=task)) in ("sdpa", "eager")  # on a GPU kernels take no fp32


def test_an_encoder_that_has_not_tried_it_is_padded(tmp_path: Path) -> None:
    """As in runs that were begun before there was a trial."""
    folder = folder_of(tmp_path, "bert")
    assert chosen(folder, recipe(task=CLASSES), by_document=False) == "sdpa"
    assert chosen(folder, recipe("varlen", task=CLASSES), by_document=False) == "varlen"


@pytest.mark.parametrize(
    ("dropout", "dtype", "expected"), [(0.1, "bf16", "sdpa"), (0.0, "bf16", "varlen"), (0.0, "fp32", "sdpa")]
)
def test_on_a_gpu_encoders_are_padded_where_scores_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float, dtype: str, expected: str
) -> None:
    """torch's kernel drops nothing out, and takes no fp32."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    folder = folder_of(tmp_path, "bert", attention_probs_dropout_prob=dropout)
    assert chosen(folder, recipe(task=CLASSES, dtype=dtype)) == expected


@pytest.mark.parametrize("architecture", ["llama", "bart", "t5"])
def test_a_classifier_that_is_no_encoder_cannot_be_told_where_documents_begin(
    tmp_path: Path, architecture: str
) -> None:
    with pytest.raises(
        UserError, match=r"varlen is for task.type causal-lm, dpo and seq2seq-lm, and for encoders; set"
    ):
        chosen(folder_of(tmp_path, architecture), recipe("varlen", task=CLASSES))


def test_a_wish_that_the_class_cannot_fulfil_is_told(tmp_path: Path) -> None:
    bloom, t5 = (folder_of(tmp_path / name, name) for name in ("bloom", "t5"))
    with pytest.raises(UserError, match=r"^model.attention: BloomForCausalLM does not support sdpa, only eager; set"):
        chosen(bloom, recipe("sdpa"))
    with pytest.raises(
        UserError, match="T5ForConditionalGeneration does not support flash_attention_2, only eager and"
    ):
        chosen(t5, recipe("flash_attention_2", task=SEQ2SEQ))
    assert chosen(bloom, recipe("eager")) == "eager"
    with pytest.raises(UserError, match=r"^model.attention: BloomForCausalLM does not support varlen, only eager; set"):
        chosen(bloom, recipe("varlen"))
    for architecture, task in (("whisper", "speech-seq2seq"), ("wav2vec2", "ctc")):
        with pytest.raises(UserError, match=f"varlen is not for task.type {task}; set it to auto"):
            chosen(folder_of(tmp_path / architecture, architecture), recipe("varlen", task=task))
    with pytest.raises(UserError, match=r"^model.attention: "):  # before all data are encoded
        attention.check(bloom, recipe("sdpa"), specs_of(recipe("sdpa")))


def test_a_model_inside_another_counts_too(tmp_path: Path) -> None:
    """An encoder that has no sdpa, beside a decoder that has."""
    inner = {"decoder": AutoConfig.for_model("bert", is_decoder=True, add_cross_attention=True).to_dict()}
    for name, expected in (("bert", "sdpa"), ("big_bird", "eager")):
        inner["encoder"] = AutoConfig.for_model(name).to_dict()
        folder = folder_of(tmp_path / name, "encoder-decoder", **inner)
        assert chosen(folder, recipe(task=SEQ2SEQ)) == expected


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
    settings = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", AUTO_CLASS: f"own.{name}"}}
    (folder / "config.json").write_text(json.dumps(settings))
    assert chosen(folder, recipe(trust_remote_code=True)) == expected


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
        model = base_model.load(tmp_path / name, wanted, specs_of(wanted), {"label": ["a", "b"]}, by_document=False)
        note = attention.cost(model, wanted)
        assert (note is None) == (said is None)
        assert said is None or (note is not None and re.search(said, note))
        assert attention.cost(model, recipe("eager")) is None  # who asks for it knows
