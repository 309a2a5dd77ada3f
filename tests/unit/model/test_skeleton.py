"""Models put together without weights, beside those that transformers loads; in shards: tests/dist/shards.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from distft.errors import UserError
from distft.model import base_model, whole_loading
from distft.model.skeleton import Places
from distft.tasks.registry import specs_of
from tests.unit.model.test_base_model import BERT, CLASSES, recipe

LABELS = {"label": ["a", "b", "c"]}
OTHER = Places(restored={"none of these"})  # so that transformers does not load it
TASKS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "bert": (AutoModelForMaskedLM, BERT, CLASSES),
    "llama": (AutoModelForCausalLM, {**BERT, "bos_token_id": None, "eos_token_id": None}, {"type": "causal-lm"}),
    "t5": (
        AutoModelForSeq2SeqLM,
        {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        {"type": "seq2seq-lm"},
    ),
    "marian": (
        AutoModelForSeq2SeqLM,
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        | {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 16},
        {"type": "seq2seq-lm"},
    ),
}


@pytest.fixture(autouse=True)
def by_transformers(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that transformers loads."""
    found, load = list[Path](), whole_loading.load

    def noted(folder: Path, *rest: Any) -> Any:
        found.append(folder)
        return load(folder, *rest)

    monkeypatch.setattr(whole_loading, "load", noted)
    return found


def make(name: str, folder: Path) -> Path:
    auto, sizes, _ = TASKS[name]
    torch.manual_seed(1)
    auto.from_config(AutoConfig.for_model(name, vocab_size=40, pad_token_id=0, **sizes)).save_pretrained(folder)
    return folder


def load(folder: Path, name: str, dtype: str, places: Places, labels: Any = LABELS) -> Any:
    wanted = recipe(TASKS[name][2], dtype=dtype)
    return base_model.load(folder, wanted, specs_of(wanted), labels, places=places)


def content(model: Any) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", TASKS)
def test_it_is_what_transformers_loads(name: str, dtype: str, tmp_path: Path, by_transformers: list[Path]) -> None:
    folder = make(name, tmp_path)
    one = load(folder, name, dtype, OTHER)
    assert by_transformers == []
    other = load(folder, name, dtype, Places())
    assert content(one).keys() == content(other).keys()
    for key, value in content(other).items():
        assert value.dtype == content(one)[key].dtype, key
        assert torch.equal(value, content(one)[key]), key
    assert len(list(one.parameters())) == len(list(other.parameters()))  # what is tied is
    assert [p.requires_grad for p in one.parameters()] == [p.requires_grad for p in other.parameters()]
    assert one.config.to_dict() == other.config.to_dict()
    assert one.training == other.training
    if one.can_generate():
        assert one.generation_config.to_dict() == other.generation_config.to_dict()


def test_a_head_of_another_size_is_made_anew(tmp_path: Path, by_transformers: list[Path]) -> None:
    load(make("bert", tmp_path), "bert", "fp32", OTHER).save_pretrained(tmp_path / "three")
    two = {"label": ["x", "y"]}
    one = load(tmp_path / "three", "bert", "fp32", OTHER, two)
    assert by_transformers == []
    other = load(tmp_path / "three", "bert", "fp32", Places(), two)
    assert one.classifier.weight.shape == (2, 16)
    assert all(torch.equal(value, content(one)[key]) for key, value in content(other).items())


def test_what_a_checkpoint_gives_is_not_read(tmp_path: Path) -> None:
    folder = make("bert", tmp_path)
    names = {"bert.embeddings.word_embeddings.weight", "classifier.weight"}
    model = load(folder, "bert", "fp32", Places(restored=names))
    nan = {name for name, value in model.named_parameters() if value.isnan().any()}
    assert nan == {"bert.embeddings.word_embeddings.weight"}  # the other is made anew


def test_files_that_do_not_fit_are_told_by_transformers(tmp_path: Path, by_transformers: list[Path]) -> None:
    folder = make("llama", tmp_path)
    settings = (folder / "config.json").read_text()
    (folder / "config.json").write_text(settings.replace('"intermediate_size": 24', '"intermediate_size": 16'))
    with pytest.raises(UserError, match=r"do not match its config\.json"):
        load(folder, "llama", "fp32", OTHER)
    assert by_transformers == [folder]
