"""What of a model is trained, and what is said of an adapter that does not fit it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from transformers import LlamaConfig, LlamaForCausalLM

from distft import adapters, models
from distft.config import Adapter, Engine, Model
from distft.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}


def attached(**given: Any) -> Any:
    adapter: Adapter = TypeAdapter(Adapter).validate_python(given)
    torch.manual_seed(0)
    return adapters.attach(LlamaForCausalLM(LlamaConfig(**SIZES)), adapter, "a/base", total_steps=100)


def trained(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DoRA on disk."""
    folder = tmp_path_factory.mktemp("stored")
    model = attached(type="lora", r=4, dora=True, targets=["q_proj", "up_proj"], seed=7)
    model.save_pretrained(folder)
    return folder


def test_a_part_of_a_model() -> None:
    model = attached(type="partial", train=["model.layers.1.*", "lm_head.weight"])
    assert {name.split(".layers.")[-1][:1] for name in trained(model) if "layers" in name} == {"1"}
    assert len(trained(model)) == 9 + 1


def test_a_tied_parameter_has_two_names() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    adapter: Adapter = TypeAdapter(Adapter).validate_python({"type": "partial", "train": ["lm_head.*"]})
    assert trained(adapters.attach(model, adapter, None, 1)) == {"model.embed_tokens.weight"}


def test_modules_to_save_are_trained_whole() -> None:
    model = attached(type="lora", targets=["q_proj"], modules_to_save=["embed_tokens"])
    names = trained(model)
    assert sum("lora_" in name for name in names) == 4
    assert len(names) == 5
    assert any("embed_tokens" in name for name in names)


def test_b_may_learn_faster() -> None:
    adapter: Adapter = TypeAdapter(Adapter).validate_python({"type": "lora", "lora_plus": 16.0})
    names = trained(attached(type="lora", lora_plus=16.0))
    rates = {name.split(".lora_")[1][0]: adapters.rate_of(adapter)(name) for name in names}
    assert rates == {"A": 1.0, "B": 16.0}


def test_an_adapter_begins_with_another(stored: Path) -> None:
    given: dict[str, Any] = {"type": "lora", "r": 4, "dora": True, "targets": ["q_proj", "up_proj"], "seed": 8}
    fresh, begun = attached(**given), attached(**given, **{"from": str(stored)})
    expected = attached(**{**given, "seed": 7})
    for name in trained(begun):
        assert torch.equal(begun.get_parameter(name), expected.get_parameter(name))
    assert any(not torch.equal(fresh.get_parameter(name), begun.get_parameter(name)) for name in trained(begun))


@pytest.mark.parametrize("switch", [{}, {"rslora": True}, {"dora": True}, {"lora_plus": 16.0}])
def test_what_is_written_computes_the_same_in_plain_peft(tmp_path: Path, switch: dict[str, Any]) -> None:
    from peft import PeftModel

    model = attached(type="lora", r=4, alpha=12, **switch)
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = PeftModel.from_pretrained(LlamaForCausalLM(LlamaConfig(**SIZES)), str(tmp_path))
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        expected, got = model.eval()(input_ids=ids).logits, again.eval()(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_adalora_is_written_without_the_ranks_it_lost(tmp_path: Path) -> None:
    """Lost ones that have grown again since are written; a weight that lost all is written with one that is zero."""
    from peft import PeftModel

    model = attached(type="adalora", init_r=3, target_r=1, alpha=12, targets=["q_proj"])
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        torch.nn.init.normal_(parameter, std=0.3)
    first, second = (f"base_model.model.model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))
    with torch.no_grad():
        model.get_parameter(f"{first}.lora_E.default")[1] = 0.0
        model.get_parameter(f"{second}.lora_E.default").zero_()
    adapters.prune(model, {first: [False, False, True], second: [False] * 3})
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    again = PeftModel.from_pretrained(LlamaForCausalLM(LlamaConfig(**SIZES)), str(tmp_path))
    assert [again.get_parameter(f"{name}.lora_E.default").numel() for name in (first, second)] == [2, 1]
    ids = torch.arange(12).view(1, 12)
    with torch.no_grad():
        expected, got = model.eval()(input_ids=ids).logits, again.eval()(input_ids=ids).logits
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"type": "lora", "targets": ["q_prj"]}, ["adapter.targets", "'q_prj'", "q_proj"]),
        ({"type": "lora", "targets": "norm"}, ["adapter.targets", "not supported"]),
        ({"type": "lora", "modules_to_save": ["head"]}, ["adapter.modules_to_save", "'head'", "lm_head"]),
        ({"type": "partial", "train": ["model.layer.1.*"]}, ["adapter.train", "'model.layer.1.*'", "model.layers.1."]),
        ({"type": "adalora", "tinit": 70}, ["tinit 70 + tfinal 30 = 100 leaves no step of 100"]),
        ({"type": "lora", "from": "no/where"}, ["adapter.from", "no/where", "no adapter"]),
        ({"type": "lora", "r": 8, "dora": True, "from": "STORED"}, ["adapter.from", "another base or shape"]),
        ({"type": "lora", "r": 4, "from": "STORED"}, ["adapter.from", "use_dora True, the recipe False"]),
        (
            {"type": "lora", "r": 4, "dora": True, "targets": ["q_proj"], "from": "STORED"},
            ["another base model"],
        ),
        (
            {"type": "lora", "r": 4, "dora": True, "targets": ["k_proj"], "from": "STORED"},
            ["adapter.from", "another base"],
        ),
        ({"type": "adalora", "from": "STORED"}, ["adapter.from", "is LORA, the recipe ADALORA"]),
    ],
)
def test_what_does_not_fit(stored: Path, given: dict[str, Any], told: list[str]) -> None:
    if given.get("from") == "STORED":
        given = {"targets": ["q_proj", "up_proj"], **given, "from": str(stored)}
    with pytest.raises(UserError) as caught:
        attached(**given)
    assert "\n" not in str(caught.value)
    for part in told:
        assert part in str(caught.value)


def test_four_bits_without_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[[str], Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else found(name))
    with pytest.raises(UserError, match=r"adapter.quantize: nf4 needs .* bitsandbytes; install distft\[qlora\]"):
        models.load(tmp_path, Model(path="x"), Engine(), quantized=True)
