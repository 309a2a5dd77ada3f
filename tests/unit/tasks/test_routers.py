"""The loss that balances a mixture of experts: beside transformers' own, with padding, and when it counts."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from distft.data.records import Document
from distft.errors import UserError
from distft.model import adapters
from distft.recipe.adapters import Adapter
from distft.recipe.tasks import CausalLM
from distft.tasks import causal_lm
from distft.tasks.causal_lm import TOKENS, Causal
from distft.tasks.protocol import MICRO_BATCHES, ModelSpec
from distft.tasks.shared.routers import ROUTER, balance, find_routers, linear_routers, routers_of
from tests.unit.recipes import recipe

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs
CPU, VOCABULARY = torch.device("cpu"), 40
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "head_dim": 8, "num_experts_per_tok": 2, "vocab_size": VOCABULARY}
MORE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 8},
    "olmoe": {"num_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "pad_token_id": 0},
    "granitemoe": {"num_local_experts": 4},
    "phimoe": {"num_local_experts": 4},
    "minimax_m2": {"num_local_experts": 4, "rotary_dim": 4},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 8, "moe_layer_start_index": 0},
    "afmoe": {"num_experts": 4, "num_dense_layers": 1, "moe_intermediate_size": 8},
    "jetmoe": {"num_local_experts": 4, "kv_channels": 8},
    "llama4_text": {"num_local_experts": 4, "intermediate_size_mlp": 16},
    "llama": {},
}
BALANCED = [
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "gpt_oss",
    "granitemoe",
    "phimoe",
    "minimax_m2",
    "ernie4_5_moe",
]
ROWS = [[5, 3], [8]]  # documents of these sizes: no padding


@cache
def _made(architecture: str) -> Any:
    torch.manual_seed(0)
    known = AutoConfig.for_model(architecture)
    sizes = {k: v for k, v in SIZES.items() if hasattr(known, k)} | {"pad_token_id": 0} | MORE[architecture]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **sizes))
    for name, parameter in model.named_parameters():
        if any(name.startswith(router) for router in routers_of(model)):
            torch.nn.init.normal_(parameter, std=1.0)  # as uneven as trained ones are without this loss
    return model


def make(architecture: str) -> Any:
    return copy.deepcopy(_made(architecture)).train()


def rows_of(sizes: list[list[int]]) -> list[list[Document]]:
    chance = np.random.default_rng(0)
    columns = [[chance.integers(1, VOCABULARY, n).astype(np.int32) for n in row] for row in sizes]
    return [
        [Document({"tokens": tokens, "targets": np.arange(len(tokens)) > 0}, len(tokens)) for tokens in row]
        for row in columns
    ]


def task_over(model: Any, wanted: float | None = None, flatten: bool = False) -> Causal:
    return Causal(model.forward, flatten, routers=find_routers(model, wanted))


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("architecture", BALANCED)
def test_it_is_transformers_own_where_nothing_is_padded(architecture: str, flatten: bool) -> None:
    model = make(architecture)
    task = task_over(model, flatten=flatten)
    batch = task.collate(rows_of(ROWS), CPU)
    losses = task.loss(model, batch)
    own = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, output_router_logits=True
    ).aux_loss
    assert own > 2.02  # 2 would be balanced
    torch.testing.assert_close(losses[ROUTER], own.float(), rtol=1e-5, atol=0)
    plain = Causal(model.forward, flatten).loss(model, batch)[TOKENS]
    torch.testing.assert_close(losses[TOKENS], plain, rtol=1e-4, atol=0)  # PhiMoE adds noise to its routers
    losses[ROUTER].backward()
    gradients = [
        model.get_submodule(name).get_parameter(key) for name in routers_of(model) for key in keys(model, name)
    ]
    assert len(gradients) >= 2
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in gradients)


def keys(model: Any, name: str) -> list[str]:
    return [
        key
        for key, parameter in model.get_submodule(name).named_parameters()
        if parameter.dim() == 2 and len(parameter) > 1
    ]


def test_padding_does_not_count() -> None:
    """Beside the same documents one by one, in transformers' own function."""
    model = make("mixtral").eval()
    task = task_over(model)
    rows = rows_of([[5, 3], [2], []])
    alone = [
        model(input_ids=torch.from_numpy(document["tokens"].astype(np.int64))[None], output_router_logits=True)
        for row in rows
        for document in row
    ]
    layers = tuple(torch.cat(parts) for parts in zip(*(output.router_logits for output in alone), strict=True))
    expected = load_balancing_loss_func(layers, 4, 2)
    got = task.loss(model, task.collate(rows, CPU))[ROUTER]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    # nor does a micro-batch of nothing else; it has the graph of the others
    empty = task.loss(model, task.collate([[], []], CPU))
    assert empty[ROUTER].item() == 0.0
    sum(empty.values(), start=torch.zeros(())).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_it_is_what_the_paper_says() -> None:
    logits = torch.tensor([[5.0, 0.0, 0.0], [4.0, 1.0, 0.0], [0.0, 3.0, 0.0], [9.0, 9.0, 9.0]])
    real = torch.tensor([True, True, True, False])
    chance = functional.softmax(logits[:3], -1).mean(0)
    expected = 3 * (2 / 3 * chance[0] + 1 / 3 * chance[1])
    torch.testing.assert_close(balance([logits], 1, real), expected)
    even = torch.eye(4).repeat(2, 1) * 1e-3
    torch.testing.assert_close(balance([even], 1, torch.ones(8, dtype=torch.bool)), torch.tensor(1.0))


def test_a_checkpointed_model_has_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        model = make("qwen3_moe")
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        task = task_over(model)
        sum(task.loss(model, task.collate(rows_of(ROWS), CPU)).values(), start=torch.zeros(())).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_its_factor_is_its_weight_for_each_micro_batch() -> None:
    model = make("mixtral")
    task = task_over(model)
    batch = task.collate(rows_of(ROWS), CPU)
    assert task.counted == (TOKENS, MICRO_BATCHES)
    assert task.counts(batch) == {TOKENS: 13, MICRO_BATCHES: 1}
    assert task.factors({TOKENS: 26, MICRO_BATCHES: 4}) == {TOKENS: 1 / 26, ROUTER: 0.001 / 4}
    other = task_over(model, 0.5)
    assert other.factors({TOKENS: 26, MICRO_BATCHES: 4})[ROUTER] == 0.125


def spec() -> ModelSpec:
    return causal_lm.spec(CausalLM(), {}).model


def attached(model: Any, **given: Any) -> Any:
    adapter: Adapter = TypeAdapter(Adapter).validate_python(given)
    return adapters.attach(model, adapter, spec(), None, total_steps=100)


@pytest.mark.parametrize(
    ("architecture", "adapter", "wanted", "weight"),
    [
        ("mixtral", {"type": "none"}, None, 0.001),
        ("mixtral", {"type": "none"}, 0.0, 0.0),
        ("mixtral", {"type": "lora"}, None, 0.0),
        ("mixtral", {"type": "lora"}, 0.02, 0.02),
        ("mixtral", {"type": "lora", "modules_to_save": ["gate"]}, None, 0.001),
        ("mixtral", {"type": "partial", "train": ["*.mlp.gate.*"]}, None, 0.001),
        ("mixtral", {"type": "partial", "train": ["lm_head.*"]}, None, 0.0),
        ("mixtral", {"type": "lora", "routers": True}, None, 0.001),
        ("mixtral", {"type": "lora", "targets": ["q_proj", "gate"]}, None, 0.001),
        ("phimoe", {"type": "lora"}, None, 0.0),
    ],
)
def test_it_counts_by_default_where_routers_are_trained(
    architecture: str, adapter: dict[str, Any], wanted: float | None, weight: float
) -> None:
    model = make(architecture)
    model.config.router_aux_loss_coef = 0.001
    task = task_over(model, wanted)  # before there is an adapter, as in a run
    whole = attached(model, **adapter)
    losses = task.loss(whole, task.collate(rows_of(ROWS), CPU))
    factors = task.factors({TOKENS: 13, MICRO_BATCHES: 1})
    assert factors.get(ROUTER, 0.0) == weight
    assert losses.keys() == factors.keys()


def test_models_without_such_a_loss_train_without() -> None:
    for architecture in ("llama", "jetmoe", "llama4_text", "afmoe"):
        model = make(architecture)
        assert find_routers(model, None) is find_routers(model, 0.0) is None
        task = task_over(model)
        assert task.counted == (TOKENS,)
        assert task.loss(model, task.collate(rows_of(ROWS), CPU)).keys() == {TOKENS}
        with pytest.raises(
            UserError, match=r"^train\.router_loss: this model has no routers that tell what they choose"
        ):
            find_routers(model, 0.1)


def test_the_task_asks_the_recipe() -> None:
    model: Any = make("olmoe")
    for wanted, weight in ((None, 0.01), (0.25, 0.25), (0.0, None)):
        setting: Any = SimpleNamespace(recipe=recipe(train={"steps": 1, "router_loss": wanted}))
        task = causal_lm.spec(CausalLM(), {}).build(setting, model)
        assert task.factors({TOKENS: 1, MICRO_BATCHES: 1}).get(ROUTER) == weight


# --- adapters ---------------------------------------------------------------------------------------------------------


def adapted(model: Any) -> set[str]:
    return {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}


LINEAR = {  # routers that are linear layers
    "phimoe": {"mlp.router"},
    "afmoe": {"mlp.router.gate"},
    "llama4_text": {"feed_forward.router"},
    "jetmoe": {"mlp.router.layer", "self_attention.experts.router.layer"},
}
# a LoRA of PEFT reaches these matrices too, with the fused weights of the experts
MATRICES = {"mixtral": {"mlp.gate"}, "qwen3_moe": {"mlp.gate"}, "olmoe": {"mlp.gate"}, "gpt_oss": set(), "llama": set()}
FUSED = {"mixtral", "qwen3_moe", "olmoe", "afmoe"}


@pytest.mark.parametrize(
    ("kind", "architecture", "routers"),
    [
        *(("lora", architecture, routers) for architecture, routers in {**LINEAR, **MATRICES}.items()),
        *(("adalora", architecture, routers) for architecture, routers in LINEAR.items()),
        ("adalora", "mixtral", set()),
    ],
)
def test_all_linear_leaves_routers_out(architecture: str, routers: set[str], kind: str) -> None:
    model = attached(make(architecture), type=kind)
    every = adapted(attached(make(architecture), type=kind, routers=True))
    reached = adapted(model)
    assert {name.split(".", 5)[-1].removesuffix(".base_layer") for name in every - reached} == routers
    assert reached <= every
    assert any("q_proj" in name or "kv_proj" in name for name in reached)
    fused = any(name.endswith("mlp.experts") for name in reached)
    assert fused == (kind == "lora" and architecture in FUSED)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name for name in trained)


def test_an_export_leaves_routers_out_when_it_is_read_again(tmp_path: Path) -> None:
    from peft import PeftModel

    for architecture in ("olmoe", "afmoe", "jetmoe"):
        model = attached(make(architecture), type="lora")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / architecture)
        again = PeftModel.from_pretrained(make(architecture), tmp_path / architecture)
        assert adapted(again) == adapted(model)
        ids = torch.arange(8)[None]
        torch.testing.assert_close(again.eval()(ids).logits, model.eval()(ids).logits)


def test_a_router_that_is_named_gets_an_adapter() -> None:
    for architecture, name in (("mixtral", "gate"), ("jetmoe", "router.layer")):
        reached = adapted(attached(make(architecture), type="lora", targets=[name]))
        assert reached
        assert all(one.endswith(name) for one in reached)


def test_routers_of_a_model_with_a_head_are_left_out() -> None:
    """Where targets are a list."""
    model, adapter = make("phimoe"), TypeAdapter(Adapter).validate_python({"type": "lora"})
    headed = replace(spec(), trains_head=True, peft_task=None)
    reached = adapted(adapters.attach(model, adapter, headed, None, 1))
    assert any(name.endswith("q_proj") for name in reached)
    assert not any("router" in name or "lm_head" in name for name in reached)


def test_experts_may_be_modules_of_their_own() -> None:
    """As in models that come with their code."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = torch.nn.Linear(8, 4)
            self.experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
            self.shared_expert_gate = torch.nn.Linear(8, 1)

    model: Any = torch.nn.Sequential(Block(), torch.nn.Linear(8, 4))
    model.config = SimpleNamespace(n_routed_experts=4)
    assert linear_routers(model) == ["0.gate"]
