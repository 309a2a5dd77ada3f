"""Attention by document beside transformers' own attention with a mask, or beside each document alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.attention import varlen
from transformers import AutoConfig, AutoModelForCausalLM

from distft.data.records import Document
from distft.model.document_attention import document_attention, offer
from distft.tasks.causal_lm import TOKENS, Causal
from distft.tasks.shared import flat_pairs
from distft.tasks.shared.boundaries import VARLEN, Boundaries

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

CPU, VOCABULARY, WINDOW = torch.device("cpu"), 97, 4
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}
WINDOWED = {"sliding_window": WINDOW, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {**WINDOWED, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 1.0},  # eager, beside eager
    "gemma3_text": {**WINDOWED, "num_hidden_layers": 6},
    "mistral": WINDOWED,
    "gpt_neox": {},
    "gpt2": GPT2,
    "mixtral": EXPERTS,
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8, "num_experts_per_tok": 2},
    "phi": {},
    "cohere": {},
    "granite": {"attention_multiplier": 0.2},
    "deepseek_v3": {
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 4,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "llama4_text": {"attention_chunk_size": WINDOW, "head_dim": 8, "num_local_experts": 2},  # by its mask
}
ALONE: dict[str, dict[str, Any]] = {  # with a mask they let documents see each other
    "gpt_oss": {**WINDOWED, **EXPERTS},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 32, "dropout": 0.0},
}


def made(architecture: str, implementation: str, by: float = 4.0, **sizes: Any) -> Any:
    offer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**SIZES, **sizes})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=implementation)
    for name, parameter in model.named_parameters():  # far from zero, so that every token matters to every other
        parameter.data.mul_(by) if parameter.dim() > 1 else None
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    return model.train()


def document(size: int, seed: int) -> Document:
    tokens = np.random.default_rng(seed).integers(VOCABULARY, size=size).astype(np.int32)
    return Document({"tokens": tokens, "targets": np.arange(size) > 0}, size, size - 1)


ROWS = [[document(size, size) for size in row] for row in ((11, 9, 1, 7), (20, 2))]


def learned(model: Any, batches: Sequence[Sequence[Sequence[Document]]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The sum of the losses of several batches, and its gradients."""
    task = Causal(model.forward, model.config._attn_implementation == VARLEN)
    total = torch.zeros(())
    for rows in batches:
        total = total + task.loss(model, task.collate(rows, CPU))[TOKENS]
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(ours: Any, theirs: Any) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    for name, gradient in ours[1].items():
        assert float((gradient - theirs[1][name]).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("architecture", MODELS)
def test_losses_and_gradients_are_those_with_a_mask(architecture: str) -> None:
    sizes = MODELS[architecture]
    other = "eager" if architecture == "gemma2" else "sdpa"
    ours, theirs = made(architecture, VARLEN, **sizes), made(architecture, other, **sizes)
    compare(learned(ours, [ROWS]), learned(theirs, [ROWS]))
    assert not Causal(ours.forward, True).documents_leak(ours.eval(), VOCABULARY, CPU)


@pytest.mark.parametrize("architecture", ALONE)
def test_losses_and_gradients_are_those_of_documents_alone(architecture: str) -> None:
    ours, theirs = (made(architecture, how, **ALONE[architecture]) for how in (VARLEN, "eager"))
    compare(learned(ours, [ROWS]), learned(theirs, [[[one]] for row in ROWS for one in row]))
    assert not Causal(ours.forward, True).documents_leak(ours.eval(), VOCABULARY, CPU)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_generation_is_that_of_transformers(architecture: str) -> None:
    """With a cache, padded prompts, and without a word of where documents begin."""
    answers = []
    for how in (VARLEN, "eager"):
        model = made(architecture, how, **{**MODELS, **ALONE}[architecture]).eval()
        ids = torch.arange(24).view(2, 12) % VOCABULARY + 3
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        padded = model.generate(ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        plain = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        answers.append((padded, plain, model(ids).logits))
    assert torch.equal(answers[0][0], answers[1][0])
    assert torch.equal(answers[0][1], answers[1][1])
    torch.testing.assert_close(answers[0][2], answers[1][2], rtol=0, atol=1e-5)


def test_in_bf16_a_deep_mixture_has_the_same_logits() -> None:
    """Its routers turn on a single bit, so scores lose their largest in the numbers in which its class does it."""
    documents, logits = [one for row in ROWS for one in row], []
    sizes = {**ALONE["gpt_oss"], "num_hidden_layers": 12}
    for how in (VARLEN, "eager"):
        model = made("gpt_oss", how, 1.0, **sizes).to(torch.bfloat16).eval()
        task, found = Causal(model.forward, how == VARLEN), []
        for row in [documents] if how == VARLEN else [[one] for one in documents]:
            batch = task.collate([row], CPU)
            everywhere = replace(batch, keep=torch.arange(batch.input_ids.shape[1]))
            found.append(task.logits(model, everywhere)[0, : batch.useful_tokens])
        logits.append(torch.cat(found).float())
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-4)


def test_recomputed_activations_give_the_same_gradients() -> None:
    plain, again = made("llama", VARLEN), made("llama", VARLEN)
    again.gradient_checkpointing_enable({"use_reentrant": False})
    (loss, gradients), (other, others) = learned(plain, [ROWS]), learned(again, [ROWS])
    assert loss == other
    assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


class Layer(torch.nn.Module):
    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.is_causal = causal


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_the_kernel_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch, window: int | None, causal: bool) -> None:
    """torch's kernel runs on a GPU alone, so its one call is replaced here by what its documentation says of it."""
    calls = []

    def kernel(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        begins: torch.Tensor,
        others: torch.Tensor,
        longest: int,
        other: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
    ) -> torch.Tensor:
        assert begins.dtype == torch.int32
        assert others is begins
        assert (longest, other, enable_gqa) == (9, 9, True)
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
        calls.append(window_size)
        before, after = window_size
        parts = []
        for a, b in zip(begins.tolist(), begins.tolist()[1:], strict=False):
            scores = torch.einsum("qhd,khd->hqk", q[a:b], k[a:b]) * scale
            distance = torch.arange(b - a)[:, None] - torch.arange(b - a)
            seen = ((distance >= -after) | torch.tensor(after < 0)) & ((distance <= before) | torch.tensor(before < 0))
            weights = scores.masked_fill(~seen, -torch.inf).softmax(2)
            parts.append(torch.einsum("hqk,khd->qhd", weights, v[a:b]))
        return torch.cat(parts)

    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 20, 8) for heads in (4, 2, 2))
    told = Boundaries.of([9, 3, 8]).arguments
    given = {"scaling": 0.3, "sliding_window": window, **told}
    expected, _ = document_attention(Layer(causal), query, key, value, None, **given)
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr("distft.model.document_attention._kernel_takes", lambda query, value: True)
    found, _ = document_attention(Layer(causal), query, key, value, None, **given)
    reach = -1 if window is None else window - 1
    assert calls == [(reach, 0 if causal else reach)]
    torch.testing.assert_close(found, expected)
    document_attention(Layer(causal), query, key, value, None, dropout=0.1, **given)  # the kernel has none
    assert len(calls) == 1


def test_the_kernel_is_told_where_sources_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a decoder: its own tokens for attention that looks back, sources for the other."""
    calls: list[Any] = []

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *told: Any, **named: Any) -> torch.Tensor:
        calls.append((told[0].tolist(), told[1].tolist(), *told[2:], named["window_size"]))
        return torch.zeros_like(q)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr("distft.model.document_attention._kernel_takes", lambda query, value: True)
    written, read = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 12, 8)
    told = flat_pairs._writes(flat_pairs.FlatPair.of([3, 9], [6, 2], (9, 6)))[1]
    nothing = torch.empty(0, 0, 0, 0, dtype=torch.bool)
    document_attention(Layer(), written, written, written, nothing, **told)
    document_attention(Layer(False), written, read, read, nothing, **told)
    assert calls == [([0, 6, 8], [0, 6, 8], 6, 6, (-1, 0)), ([0, 6, 8], [0, 3, 12], 6, 9, (-1, -1))]


def test_sources_of_one_size_are_looked_at_at_once() -> None:
    torch.manual_seed(0)
    sizes, sources = (4, 4, 2, 1, 1), (3, 3, 3, 5, 6)
    query, (key, value) = torch.randn(1, 2, 12, 8), (torch.randn(1, 2, 20, 8) for _ in range(2))
    found, _ = document_attention(
        Layer(False), query, key, value, None, document_sizes=sizes, source_sizes=sources, scaling=0.3
    )
    parts = zip(query.split(sizes, 2), key.split(sources, 2), value.split(sources, 2), strict=True)
    alone = [functional.scaled_dot_product_attention(*part, scale=0.3).transpose(1, 2) for part in parts]
    assert torch.allclose(found, torch.cat(alone, 1), atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"softcap": 2.0}, {"s_aux": torch.ones(4)}])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_documents_of_one_size_are_computed_at_once_with_the_same_bits(
    window: int | None, causal: bool, more: dict[str, Any]
) -> None:
    """Two rows of documents, beside each document alone."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 35, 8) for heads in (4, 2, 2))
    given: dict[str, Any] = {"scaling": 0.3, "sliding_window": window, **more}
    sizes = (9, 9, 9, 1, 1, 6)
    found, _ = document_attention(Layer(causal), query, key, value, None, document_sizes=sizes, **given)
    alone = [
        document_attention(Layer(causal), *parts, None, **given)[0]
        for parts in zip(*(tensor.split(sizes, 2) for tensor in (query, key, value)), strict=True)
    ]
    assert torch.equal(found, torch.cat(alone, 1))


def test_runs_of_causal_models_that_drop_scores_keep_their_draws() -> None:
    query, key, value = (torch.randn(1, 2, 12, 8) for _ in range(3))
    torch.manual_seed(0)
    found, _ = document_attention(Layer(), query, key, value, None, dropout=0.5, document_sizes=(4, 4, 4))
    torch.manual_seed(0)
    parts = zip(*(tensor.split(4, 2) for tensor in (query, key, value)), strict=True)
    alone = [document_attention(Layer(), *part, None, dropout=0.5)[0] for part in parts]
    assert torch.equal(found, torch.cat(alone, 1))


def test_runs_of_causal_models_with_sinks_keep_the_sums_of_their_gradients() -> None:
    sizes = (33, 33, 33, 33)
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, sum(sizes), 16) for _ in range(3))
    sinks = torch.randn(4, requires_grad=True)
    found, _ = document_attention(Layer(), query, key, value, None, s_aux=sinks, document_sizes=sizes)
    parts = zip(*(tensor.split(sizes, 2) for tensor in (query, key, value)), strict=True)
    alone = torch.cat([document_attention(Layer(), *part, None, s_aux=sinks)[0] for part in parts], 1)
    [together, apart] = (torch.autograd.grad(one.square().sum(), sinks)[0] for one in (found, alone))
    assert torch.equal(together, apart)


def test_the_configuration_that_is_saved_does_not_name_it(tmp_path: Any) -> None:
    made("llama", VARLEN).save_pretrained(tmp_path)
    assert VARLEN not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"
