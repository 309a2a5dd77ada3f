"""A module that a recipe names is trained, or refused; and what was trained is in the export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from pydantic import TypeAdapter
from transformers import AutoConfig

from distft.errors import UserError
from distft.model.export import check_loads
from distft.model.reached import Reached
from distft.model.shared_weights import untied_copies
from distft.recipe.adapters import Adapter
from distft.tasks.multi_task import Shared

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs

T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
ENDS = ("encoder", "decoder")
BART = {
    **{
        f"{end}_{key}": value for end in ENDS for key, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))
    },
    "d_model": 16,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
SIZES: dict[str, dict[str, Any]] = {
    "t5": T5,
    "mt5": {**T5, "pad_token_id": 0},
    "bart": BART,
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "bert": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
}
QUERIES = {"t5": "q", "mt5": "q", "gpt2": "c_attn", "bert": "query"}


def model_of(architecture: str, auto: str, **config: Any) -> Any:
    torch.manual_seed(0)
    made = AutoConfig.for_model(architecture, vocab_size=40, **SIZES[architecture], **config)
    return getattr(transformers, auto).from_config(made)


def after_backward(model: Any, **given: Any) -> tuple[Reached, Any]:
    """What watched a backward pass of the model, and the model with its adapter."""
    adapter: Adapter = TypeAdapter(Adapter).validate_python({"type": "lora", "targets": ["c_attn"], **given})
    settings = LoraConfig(
        target_modules=getattr(adapter, "targets", None), modules_to_save=getattr(adapter, "modules_to_save", None)
    )
    adapted = get_peft_model(model, settings, autocast_adapter_dtype=False)
    reached = Reached(adapted, adapter)
    ids = torch.arange(3, 12).view(1, 9)
    labels = torch.tensor([1]) if "Classification" in type(model).__name__ else ids
    adapted(input_ids=ids, labels=labels).loss.backward()
    return reached, adapted


SEQ2SEQ, CAUSAL, CLASSES = "AutoModelForSeq2SeqLM", "AutoModelForCausalLM", "AutoModelForSequenceClassification"


@pytest.mark.parametrize(
    ("architecture", "auto", "config", "named"),
    [
        ("t5", SEQ2SEQ, {}, ["embed_tokens"]),
        ("t5", SEQ2SEQ, {}, ["embed_tokens", "lm_head"]),
        ("mt5", SEQ2SEQ, {}, ["decoder.embed_tokens"]),
        ("bart", SEQ2SEQ, {}, ["embed_tokens", "lm_head"]),
        ("llama", CAUSAL, {"tie_word_embeddings": True}, ["lm_head"]),
        ("llama", CAUSAL, {"tie_word_embeddings": True}, ["embed_tokens"]),
        ("llama", CAUSAL, {"tie_word_embeddings": True}, ["embed_tokens", "lm_head"]),
        ("llama", CAUSAL, {"tie_word_embeddings": False}, ["lm_head"]),
        ("llama", CLASSES, {"pad_token_id": 0}, ["score"]),
        ("gpt2", CAUSAL, {}, ["wte"]),
        ("bert", CLASSES, {}, ["classifier"]),
        ("bert", CLASSES, {}, ["pooler"]),
        ("bert", "AutoModelForMaskedLM", {}, ["decoder"]),
    ],
)
def test_modules_that_are_trained(architecture: str, auto: str, config: Any, named: list[str]) -> None:
    targets = [QUERIES.get(architecture, "q_proj")]
    reached, adapted = after_backward(
        model_of(architecture, auto, **config), targets=targets, modules_to_save=list(named)
    )
    reached.check()
    copies = {name: p for name, p in adapted.named_parameters() if ".modules_to_save." in name}
    assert all(any(f"{name}.modules_to_save" in copy for copy in copies) for name in named)
    assert all(copy.grad is not None for copy in copies.values())
    torch.optim.SGD(copies.values(), lr=1.0).step()
    originals = {name: name.replace(".modules_to_save.default", ".original_module") for name in copies}
    moved = [name for name, old in originals.items() if not torch.equal(copies[name], adapted.get_parameter(old))]
    assert moved == list(copies)


@pytest.mark.parametrize(("architecture", "inner"), [("t5", ""), ("mt5", ""), ("bart", "model.")])
@pytest.mark.parametrize("key", ["modules_to_save", "targets"])
def test_the_shared_matrix_is_refused_with_the_names_of_those_that_are_used(
    architecture: str, inner: str, key: str
) -> None:
    targets = [QUERIES.get(architecture, "q_proj")]
    given = {"targets": targets, "modules_to_save": ["shared"]} if key != "targets" else {key: [*targets, "shared"]}
    reached, _ = after_backward(model_of(architecture, SEQ2SEQ), **given)
    with pytest.raises(UserError) as raised:
        reached.check()
    assert str(raised.value) == (
        f"adapter.{key}: no forward pass of this model uses 'shared', so it would never change; its weight is that of "
        f"{inner}encoder.embed_tokens, {inner}decoder.embed_tokens, lm_head: name those modules"
    )


def test_a_module_that_nothing_uses_is_refused() -> None:
    model = model_of("gpt2", CAUSAL)
    model.spare = torch.nn.Linear(2, 2)
    reached, _ = after_backward(model, modules_to_save=["spare"])
    with pytest.raises(UserError, match=r"uses 'spare', so it would never change; leave it out$"):
        reached.check()


def test_of_several_modules_by_one_name_one_is_enough() -> None:
    """Experts of a layer may all be left out of a batch."""
    model = model_of("gpt2", CAUSAL)
    model.spare = torch.nn.ModuleDict({"wpe": torch.nn.Embedding(2, 2)})
    reached, _ = after_backward(model, modules_to_save=["wpe"])
    reached.check()


def test_without_layers_of_an_adapter_there_is_nothing_to_watch() -> None:
    Reached(model_of("gpt2", CAUSAL), TypeAdapter(Adapter).validate_python({"type": "none"})).check()


@pytest.mark.parametrize(
    ("architecture", "auto", "named", "kept"),
    [
        ("llama", CAUSAL, "lm_head", True),
        ("t5", SEQ2SEQ, "lm_head", True),
        ("bart", SEQ2SEQ, "lm_head", False),
        ("bert", "AutoModelForMaskedLM", "cls", False),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_trained_copy_of_a_tied_layer_is_in_the_merged_model_or_it_is_refused(
    tmp_path: Path, architecture: str, auto: str, named: str, kept: bool, several: bool
) -> None:
    config = {"tie_word_embeddings": True} if architecture == "llama" else {}
    _, adapted = after_backward(
        model_of(architecture, auto, **config),
        targets=[QUERIES.get(architecture, "q_proj")],
        modules_to_save=[named],
    )
    assert untied_copies(adapted)
    for name, parameter in adapted.named_parameters():
        if ".modules_to_save." in name:
            torch.nn.init.normal_(parameter)
    merged = adapted.merge_and_unload()
    if several:
        shared = Shared.__new__(Shared)
        torch.nn.Module.__init__(shared)
        shared.parts = torch.nn.ModuleDict({"a": merged})
        merged = shared
    merged.save_pretrained(tmp_path)
    if kept:
        check_loads(merged, tmp_path)
        return
    with pytest.raises(UserError, match=f"^--merged: .* transformers cannot load such a {architecture} "):
        check_loads(merged, tmp_path)


def test_copies_of_layers_that_share_nothing_need_no_look() -> None:
    _, adapted = after_backward(model_of("bert", CLASSES), targets=["query"], modules_to_save=["classifier"])
    assert not untied_copies(adapted)
