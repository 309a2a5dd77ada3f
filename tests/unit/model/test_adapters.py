"""What of a model is trained, and what is said of an adapter that does not fit it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import transformers
from pydantic import TypeAdapter
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from distft.errors import UserError
from distft.model import adapters, base_model
from distft.model.shared_weights import tied_target
from distft.recipe.adapters import Adapter
from distft.recipe.schema import Recipe, Train
from distft.recipe.tasks import CausalLM, MultiTask
from distft.tasks import causal_lm
from distft.tasks.multi_task import join_models, whole
from distft.tasks.protocol import ModelSpec
from distft.tasks.registry import SPECS, specs_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
CAUSAL = causal_lm.spec(CausalLM(), {}).model


def attached(**given: Any) -> Any:
    adapter: Adapter = TypeAdapter(Adapter).validate_python(given)
    torch.manual_seed(0)
    return adapters.attach(LlamaForCausalLM(LlamaConfig(**SIZES)), adapter, CAUSAL, "a/base", total_steps=100)


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


def test_adalora_in_bf16_does_not_train_the_number_of_ranks() -> None:
    adapter: Adapter = TypeAdapter(Adapter).validate_python({"type": "adalora", "init_r": 3, "target_r": 1})
    model = adapters.attach(LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16), adapter, CAUSAL, None, 100)
    assert {name.split(".")[-2] for name in trained(model)} == {"lora_A", "lora_B", "lora_E"}


def test_a_tied_parameter_has_two_names() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    adapter: Adapter = TypeAdapter(Adapter).validate_python({"type": "partial", "train": ["lm_head.*"]})
    assert trained(adapters.attach(model, adapter, CAUSAL, None, 1)) == {"model.embed_tokens.weight"}


def test_modules_to_save_are_trained_whole() -> None:
    model = attached(type="lora", targets=["q_proj"], modules_to_save=["embed_tokens"])
    names = trained(model)
    assert sum("lora_" in name for name in names) == 4
    assert len(names) == 5
    assert any("embed_tokens" in name for name in names)


def test_b_may_learn_faster() -> None:
    adapter: Adapter = TypeAdapter(Adapter).validate_python({"type": "lora", "lora_plus": 16.0})
    names = trained(attached(type="lora", lora_plus=16.0))
    rate_of = adapters.rate_of(Train(steps=1), adapter, [])
    assert {name.split(".lora_")[1][0]: rate_of(name) for name in names} == {"A": 1.0, "B": 16.0}


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


def test_a_target_that_is_another_layers_weight_too_is_found() -> None:
    for tied, wanted in ((True, "base_model.model.lm_head"), (False, None)):
        model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": tied}))
        settings: Adapter = TypeAdapter(Adapter).validate_python({"type": "lora", "targets": ["q_proj", "lm_head"]})
        assert tied_target(adapters.attach(model, settings, CAUSAL, "base", 10)) == wanted


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"type": "lora", "targets": ["q_prj"]}, ["adapter.targets", "'q_prj'", "q_proj"]),
        ({"type": "lora", "targets": "norm"}, ["adapter.targets", "not supported"]),
        ({"type": "lora", "modules_to_save": ["head"]}, ["adapter.modules_to_save", "'head'", "lm_head"]),
        ({"type": "partial", "train": ["model.layer.1.*"]}, ["adapter.train", "'model.layer.1.*'", "model.layers.1."]),
        ({"type": "adalora", "tinit": 70}, ["tinit 70 + tfinal 30 = 100 leaves none of the 100 steps"]),
        ({"type": "lora", "from": "no/where"}, ["adapter.from", "no/where", "not an adapter"]),
        ({"type": "lora", "r": 8, "dora": True, "from": "STORED"}, ["adapter.from", "another base model or shape"]),
        ({"type": "lora", "r": 4, "from": "STORED"}, ["adapter.from", "use_dora True, the recipe False"]),
        (
            {"type": "lora", "r": 4, "dora": True, "targets": ["q_proj"], "from": "STORED"},
            ["another base model"],
        ),
        (
            {"type": "lora", "r": 4, "dora": True, "targets": ["k_proj"], "from": "STORED"},
            ["adapter.from", "another base"],
        ),
        ({"type": "adalora", "from": "STORED"}, ["adapter.from", "is a LORA adapter, the recipe asks for ADALORA"]),
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
    values = {"model": {"path": "x"}, "data": {"train": "x"}, "train": {"steps": 1}}
    recipe = Recipe.model_validate(values)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"adapter.quantize: nf4 needs .* bitsandbytes; install distft\[qlora\]"):
        base_model.load(tmp_path, recipe, specs_of(recipe), {}, quantized=True)


# --- tasks with heads -------------------------------------------------------------------------------------------------

CLASSES = {"type": "sequence-classification"}
TAGS = {"type": "token-classification"}
TWO = {"type": "multi-task", "tasks": {"mood": {"task": CLASSES, "train": "x"}, "tags": {"task": TAGS, "train": "x"}}}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "llama": SIZES,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
}


def headed(architecture: str, task: dict[str, Any]) -> tuple[ModelSpec, Any]:
    """What a task asks of its model, and such a model."""
    data = {} if task["type"] == "multi-task" else {"data": {"train": "d"}}
    specs = specs_of(Recipe.model_validate({"task": task, "model": {"path": "m"}, **data, "train": {"steps": 1}}))
    sizes = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, **ENCODERS[architecture]}
    models = {}
    for name, spec in specs.items():
        config = AutoConfig.for_model(architecture, **sizes, **spec.model.head(["a", "b", "c"]))
        models[name] = getattr(transformers, spec.model.auto_class).from_config(config)
        spec.model.extend(models[name], ["a", "b", "c"])
    return whole(specs), join_models(models)


@pytest.mark.parametrize("adapter", [{"type": "lora", "r": 2}, {"type": "adalora", "init_r": 3, "target_r": 2}])
@pytest.mark.parametrize(
    ("architecture", "task", "heads"),
    [
        ("bert", CLASSES, ["classifier"]),
        ("bert", TAGS, ["classifier"]),
        ("roberta", CLASSES, ["classifier"]),
        ("distilbert", CLASSES, ["classifier", "pre_classifier"]),
        ("llama", CLASSES, ["score"]),
        ("gpt2", CLASSES, ["score"]),
    ],
)
def test_a_head_is_trained_whole_and_has_no_adapter(
    architecture: str, task: dict[str, Any], heads: list[str], adapter: dict[str, Any]
) -> None:
    spec, model = headed(architecture, task)
    assert adapters.head_modules(model, spec) == heads
    heads = [*heads, *adapters.poolers(model, spec)]  # a pooler that is made anew must be in the export
    assert ("bert.pooler" in heads) is (architecture == "bert" and task == CLASSES)
    whole = sum(parameter.numel() for head in heads for parameter in model.get_submodule(head).parameters())
    adapted = adapters.attach(model, TypeAdapter(Adapter).validate_python(adapter), spec, None, 100)
    in_heads = {n for n in trained(adapted) if any(f".{head}." in n for head in heads)}
    assert sum(adapted.get_parameter(name).numel() for name in in_heads) == whole
    assert not any("lora_" in name for name in in_heads)
    others = trained(adapted) - in_heads
    assert others
    assert all(".lora_" in name for name in others)


def test_named_targets_and_modules_are_kept_beside_the_head() -> None:
    spec, model = headed("bert", CLASSES)
    given = {"type": "lora", "r": 2, "targets": ["query"], "modules_to_save": ["pooler"]}
    names = trained(adapters.attach(model, TypeAdapter(Adapter).validate_python(given), spec, None, 100))
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names if ".lora_" in name} == {"query"}
    assert {"pooler", "classifier"} == {
        part for name in names if ".lora_" not in name for part in ("pooler", "classifier") if f".{part}." in name
    }


@pytest.mark.parametrize("adapter", [{"type": "none"}, {"type": "lora", "r": 2, "lora_plus": 4.0}])
@pytest.mark.parametrize(
    ("task", "heads"),
    [
        (CLASSES, {"classifier"}),
        ({**TAGS, "crf": True}, {"classifier", "crf"}),
        (TWO, {"parts"}),
    ],
)
def test_a_head_may_learn_at_a_rate_of_its_own(task: dict[str, Any], heads: set[str], adapter: dict[str, Any]) -> None:
    spec, model = headed("bert", task)
    train, chosen = Train(steps=1, lr=1e-4, head_lr=1e-3), TypeAdapter(Adapter).validate_python(adapter)
    rate_of = adapters.rate_of(train, chosen, adapters.head_modules(model, spec))
    rates = {name: round(rate_of(name), 6) for name in trained(adapters.attach(model, chosen, spec, None, 1))}
    fast = {name for name, rate in rates.items() if rate == 10.0}
    assert {name.removeprefix(adapters.PREFIX).split(".")[0] for name in fast} == heads
    assert not any(".bert." in name or name.startswith("bert.") for name in fast)
    assert {rate for name, rate in rates.items() if name not in fast} == ({1.0, 4.0} if "r" in adapter else {1.0})


def test_recipes_and_tasks_agree_on_who_has_a_head() -> None:
    for section, make in SPECS.items():
        settings = TypeAdapter(section).validate_python({"type": get_args(section.model_fields["type"].annotation)[0]})
        assert make(settings, {}).model.trains_head is section.HAS_HEAD
    assert MultiTask.HAS_HEAD


def test_a_language_model_has_no_head_to_train() -> None:
    spec, model = headed("bert", {"type": "masked-lm"})
    adapted = adapters.attach(model, TypeAdapter(Adapter).validate_python({"type": "lora"}), spec, None, 100)
    assert all(".lora_" in name for name in trained(adapted))


@pytest.mark.parametrize("adapter", [{"type": "lora", "r": 2}, {"type": "adalora", "init_r": 3, "target_r": 2}])
def test_of_several_tasks_all_heads_are_trained_and_the_encoder_has_one_adapter(adapter: dict[str, Any]) -> None:
    spec, model = headed("bert", TWO)
    assert adapters.head_modules(model, spec) == ["parts.mood.classifier", "parts.tags.classifier"]
    adapted = adapters.attach(model, TypeAdapter(Adapter).validate_python(adapter), spec, None, 100)
    names = trained(adapted)
    heads = {name for name in names if "lora_" not in name}
    assert {name.split(".parts.")[1].split(".")[0] for name in heads} == {"mood", "tags"}
    assert all(".classifier." in name or ".pooler." in name for name in heads)
    assert len([name for name in names if name.endswith("query.lora_A.default")]) in (0, 2)  # two layers, not four
    parts = adapted.base_model.model.parts
    assert parts["mood"].bert is parts["tags"].bert
    inputs = {"input_ids": torch.arange(8).view(1, 8)}
    loss = sum(adapted(part=name, **inputs).logits.sum() for name in ("mood", "tags"))
    loss.backward()
    assert all(adapted.get_parameter(name).grad is not None for name in names)
