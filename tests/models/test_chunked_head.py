"""Losses of heads that are told the targets, beside those of all logits, for models of transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from distft.data.records import Document
from distft.tasks.causal_lm import TOKENS, Causal
from distft.tasks.shared.chunked_head import ChunkedHead, find
from distft.tasks.shared.chunked_loss import Head, Rescaling, losses

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs

CPU = torch.device("cpu")
VOCABULARY, CHUNK = 97, 8
DECODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", DECODER),
    "qwen2, tied": ("qwen2", DECODER | {"tie_word_embeddings": True}),
    "gemma2, capped": ("gemma2", DECODER | {"head_dim": 8, "final_logit_softcapping": 2.0}),
    "cohere, multiplied": ("cohere", DECODER | {"logit_scale": 0.25}),
    "granite, divided": ("granite", DECODER | {"logits_scaling": 6.0}),
    "phi, with a bias": ("phi", DECODER),
    "gpt2": ("gpt2", GPT2),
    "gpt_neox": ("gpt_neox", DECODER),
    "mixtral": ("mixtral", DECODER | {"num_local_experts": 4}),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> Any:
    kind, sizes = MODELS[name]
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, **special, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        for parameter in model.parameters():  # far from zero
            parameter.data.mul_(4.0) if parameter.dim() > 1 else parameter.data.add_(0.1)
    return model.eval()


def rows(seed: int = 0, documents: int = 3) -> list[list[Document]]:
    chance = np.random.default_rng(seed)

    def document() -> Document:
        size = int(chance.integers(4, 12))
        targets = chance.random(size) < 0.8
        targets[:2] = False, True
        tokens = chance.integers(0, VOCABULARY, size).astype(np.int32)
        return Document({"tokens": tokens, "targets": targets}, size, int(targets.sum()))

    return [[document() for _ in range(documents)] for _ in range(2)]


def tasks(model: Any) -> tuple[Causal, Causal]:
    """One with all logits, and one with chunks of them."""
    whole, chunked = (Causal(model.forward, flatten=False) for _ in range(2))
    head = find(model, CHUNK, lambda vocabulary: chunked.few(model, vocabulary, CPU))
    assert isinstance(head, ChunkedHead), head
    chunked.head = head
    return whole, chunked


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


def step(model: Any, task: Any, batch: Any, factor: float = 0.3) -> tuple[float, dict[str, torch.Tensor]]:
    loss = task.loss(model, batch)[TOKENS]
    (loss * factor).backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients(model)


def compare(model: Any, whole: Any, chunked: Any, batch: Any, share: float = 1e-5) -> None:
    expected, theirs = step(model, whole, batch)
    found, ours = step(model, chunked, batch)
    assert found == pytest.approx(expected, rel=share / 10)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert ours[name].dtype == gradient.dtype
        assert (ours[name] - gradient).abs().max() <= share * max(1e-3, float(gradient.abs().max())), name


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_all_logits(name: str) -> None:
    model = made(name)
    whole, chunked = tasks(model)
    batch = whole.collate(rows(), CPU)
    assert len(batch.targets) > 3 * CHUNK
    compare(model, whole, chunked, batch)
    with torch.no_grad():
        expected, found = (task.predict(model, batch) for task in (whole, chunked))
    assert [one["right"] for one in found] == [one["right"] for one in expected]
    assert [one["loss"] for one in found] == pytest.approx([one["loss"] for one in expected], rel=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2, tied", "phi, with a bias"])
@pytest.mark.parametrize("frozen", ["head", "all below"])
def test_a_frozen_head_and_a_trained_one_alone(name: str, frozen: str) -> None:
    model = made(name)
    head = {id(one) for one in model.get_output_embeddings().parameters()}
    for one in model.parameters():
        one.requires_grad_((id(one) in head) == (frozen == "all below"))
    compare(model, *tasks(model), tasks(model)[0].collate(rows(), CPU))


def test_nothing_to_learn() -> None:
    model = made("llama")
    whole, chunked = tasks(model)
    compare(model, whole, chunked, whole.collate([[]], CPU))


@pytest.mark.parametrize("name", ["llama", "gemma2, capped", "granite, divided"])
def test_in_bf16_as_near_to_fp32_as_all_logits(name: str) -> None:
    """What is worth of either way is its distance to gradients in fp32."""
    model = made(name, torch.bfloat16)
    whole, chunked = tasks(model)
    batch = whole.collate(rows(documents=20), CPU)
    precise = made(name)
    precise.load_state_dict(model.state_dict())
    exact, theirs = step(precise, whole, batch)
    errors = []
    for task in (whole, chunked):
        loss, found = step(model, task, batch)
        assert loss == pytest.approx(exact, rel=2e-2)
        errors.append(max(float((found[n].float() - g).norm() / g.norm()) for n, g in theirs.items()))
    assert errors[1] <= 1.2 * errors[0]


def test_each_loss_has_the_gradient_of_its_own_weight() -> None:
    model = made("gemma2, capped")
    model.get_input_embeddings().weight.requires_grad_(False)
    whole, chunked = tasks(model)
    batch = whole.collate(rows(), CPU)
    weights = torch.rand(len(batch.targets), generator=torch.Generator().manual_seed(0))
    found = []
    for task in (whole, chunked):
        each = task.each_loss(model, batch, {})
        (each * weights).square().sum().backward()  # type: ignore[no-untyped-call]
        found.append((each.detach(), gradients(model)))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    for name, gradient in found[0][1].items():
        assert (found[1][1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_only_a_chunk_of_logits_is_ever_made() -> None:
    weight = torch.randn(50, 8)
    head = Head(weight, None, Rescaling(), chunk=4)
    assert [(one.start, one.stop) for one in head.parts(9)] == [(0, 3), (3, 6), (6, 9)]
    assert list(head.parts(0)) == []
    assert head.room(torch.zeros(9, 8)).shape == (3, 50)
    huge = Head(torch.empty(2**27, 8, device="meta"), None, Rescaling(), chunk=1024)
    assert {one.stop - one.start for one in huge.parts(7)} == {1}


@pytest.mark.parametrize("rescaling", [Rescaling(0.5, 3.0), Rescaling(2.0), Rescaling(cap=1.0)])
def test_rescaled_logits(rescaling: Rescaling) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.arange(10)
    logits = rescaling.factor * hidden @ weight.T
    if rescaling.cap is not None:
        logits = rescaling.cap * torch.tanh(logits / rescaling.cap)
    expected = functional.cross_entropy(logits, targets, reduction="sum")
    found = losses(Head(weight, None, rescaling, 4), hidden, targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    one, other = (torch.autograd.grad(value, (hidden, weight)) for value in (expected, found))
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_model_that_does_what_nobody_says_keeps_all_logits() -> None:
    model = made("granite, divided")
    task = Causal(model.forward, flatten=False)
    few = lambda vocabulary: task.few(model, vocabulary, CPU)  # noqa: E731

    def add(module: Any, inputs: Any, output: Any) -> None:
        output["logits"] = output.logits + 1.0

    model.register_forward_hook(add)
    assert find(model, CHUNK, few) == "what it does to its head's output is not known"


def test_a_model_that_counts_on_all_logits_keeps_them() -> None:
    model = made("llama")
    task = Causal(model.forward, flatten=False)

    def count(module: Any, inputs: Any, output: Any) -> None:
        if output.logits.shape[1] == 0:
            raise ValueError("where are they?")

    model.register_forward_hook(count)
    assert find(model, CHUNK, lambda vocabulary: task.few(model, vocabulary, CPU)) == "where are they?"


def test_a_head_with_a_hook_of_its_own_keeps_all_logits() -> None:
    model = made("llama")
    task = Causal(model.forward, flatten=False)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 2.0)
    found = find(model, CHUNK, lambda vocabulary: task.few(model, vocabulary, CPU))
    assert found == "its logits differ from those of its head"


def test_an_adapter_on_the_head_keeps_all_logits() -> None:
    import peft

    model = made("llama")
    task = Causal(model.forward, flatten=False)
    settings = peft.LoraConfig(target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM")
    adapted: Any = peft.get_peft_model(model, settings)
    found = find(adapted, CHUNK, lambda vocabulary: task.few(adapted, vocabulary, CPU))
    assert found == "its head is a peft.tuners.lora.layer.Linear"


@pytest.mark.parametrize("again", [False, True])
def test_adapters_below_the_head(again: bool) -> None:
    import peft

    model = made("llama").train()
    if again:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    settings = peft.LoraConfig(target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted: Any = peft.get_peft_model(model, settings)
    task, chunked = (Causal(model.forward, flatten=False) for _ in range(2))
    head = find(adapted, CHUNK, lambda vocabulary: chunked.few(adapted, vocabulary, CPU))
    assert isinstance(head, ChunkedHead)
    chunked.head = head
    compare(adapted, task, chunked, task.collate(rows(), CPU))
