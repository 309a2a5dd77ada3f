"""Weights read from a model's files stretch by stretch are those that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from distft.model.weight_files import SINGLE, WeightFiles
from tests.models.small_models import DECODERS, ENCODERS, LISTENERS, TRANSLATORS, WRITERS, Sizes

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

KINDS = (
    ("AutoModelForCausalLM", DECODERS),
    ("AutoModelForMaskedLM", ENCODERS),
    ("AutoModelForSeq2SeqLM", TRANSLATORS),
    ("AutoModelForCTC", LISTENERS),
    ("AutoModelForSpeechSeq2Seq", WRITERS),
)
CASES = [(auto, family, sizes[0]) for auto, models in KINDS for family, sizes in models.items()]
FUSED = {"mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "deepseek_v2", "deepseek_v3"}


def written(folder: Path, auto: str, family: str, sizes: Sizes) -> Any:
    torch.manual_seed(1)
    model = getattr(transformers, auto).from_config(transformers.AutoConfig.for_model(family, **sizes))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="40KB")
    return model


def without_weights(folder: Path, auto: str, **head: Any) -> Any:
    settings = transformers.AutoConfig.from_pretrained(folder, **head)
    with torch.device("meta"):
        return getattr(transformers, auto).from_config(settings)


@pytest.mark.parametrize(("auto", "family", "sizes"), CASES, ids=[case[1] for case in CASES])
def test_names_and_bytes_are_those_of_transformers(auto: str, family: str, sizes: Sizes, tmp_path: Path) -> None:
    written(tmp_path, auto, family, sizes)
    loaded = getattr(transformers, auto).from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    files = WeightFiles.of(tmp_path, without_weights(tmp_path, auto))
    if files is None:
        assert family in FUSED
        return
    assert family not in FUSED
    assert files.names | files.missing == loaded.keys()
    for name in files.names:
        whole = files.read(name)
        assert torch.equal(whole, loaded[name]), name
        begin, numel = whole.numel() // 3, whole.numel() // 2
        assert torch.equal(files.read_flat(name, begin, numel), whole.view(-1)[begin : begin + numel])
    lacking = {name for name in files.missing if loaded[name].is_floating_point() and name.endswith("weight")}
    assert all(family == "marian" and "embed_positions" in name for name in lacking)  # transformers computes them


def test_a_head_that_lacks_is_missing_and_one_of_another_task_is_left_out(tmp_path: Path) -> None:
    written(tmp_path, "AutoModelForMaskedLM", "bert", ENCODERS["bert"][0])
    files = WeightFiles.of(tmp_path, without_weights(tmp_path, "AutoModelForSequenceClassification", num_labels=3))
    assert files is not None
    assert {"classifier.weight", "classifier.bias"} <= files.missing
    assert not any(name.startswith("cls.") for name in files.names)


def test_a_base_without_the_prefix_of_its_head_is_found(tmp_path: Path) -> None:
    torch.manual_seed(1)
    made = transformers.AutoModel.from_config(transformers.AutoConfig.for_model("bert", **ENCODERS["bert"][0]))
    made.save_pretrained(tmp_path)
    files = WeightFiles.of(tmp_path, without_weights(tmp_path, "AutoModelForTokenClassification", num_labels=2))
    assert files is not None
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(files.read(f"bert.{name}"), made.state_dict()[name])


def test_tied_weights_have_one_place_unless_the_files_hold_two(tmp_path: Path) -> None:
    tied = DECODERS["llama"][1]
    written(tmp_path, "AutoModelForCausalLM", "llama", tied)
    model = without_weights(tmp_path, "AutoModelForCausalLM")
    files = WeightFiles.of(tmp_path, model)
    assert files is not None
    assert files.places["lm_head.weight"] == files.places["model.embed_tokens.weight"]

    written(tmp_path / "one", "AutoModelForCausalLM", "llama", {**tied, "num_hidden_layers": 1})
    torch.manual_seed(2)
    small = {key: value for key, value in files_of(tmp_path / "one").items() if "embed" in key}
    [(key, embedding)] = small.items()
    for head, expected in ((embedding.clone(), True), (embedding + 1, False)):
        folder = tmp_path / str(expected)
        folder.mkdir()
        save_file({**files_of(tmp_path / "one"), "lm_head.weight": head}, folder / SINGLE, {"format": "pt"})
        settings = json.loads((tmp_path / "one" / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings))
        assert (WeightFiles.of(folder, without_weights(folder, "AutoModelForCausalLM")) is not None) == expected
    assert key == "model.embed_tokens.weight"


def files_of(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def test_what_does_not_correspond_is_left_to_transformers(tmp_path: Path) -> None:
    model = written(tmp_path, "AutoModelForCausalLM", "llama", DECODERS["llama"][0])
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    shape = without_weights(tmp_path, "AutoModelForCausalLM")
    for path in tmp_path.glob("*.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])  # cut off
        assert WeightFiles.of(tmp_path, shape) is None
        path.write_bytes(whole)
    assert WeightFiles.of(tmp_path, shape) is not None
    shape.config.quantization_config = {"quant_method": "fp8"}
    assert WeightFiles.of(tmp_path, shape) is None
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    assert WeightFiles.of(tmp_path, without_weights(tmp_path, "AutoModelForCausalLM")) is None
