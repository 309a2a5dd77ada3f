"""The causal task: a packed row is worth exactly the documents in it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from distft.data.types import Document
from distft.tasks.causal import TOKENS, Causal

CPU = torch.device("cpu")
VOCABULARY = 64
SIZES = {
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}
KINDS = list(SIZES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads only get in each other's way on matrices this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(kind: str, training: bool = False) -> Any:
    sizes: dict[str, Any] = SIZES[kind] | ({} if kind == "gpt2" else {"intermediate_size": 48})
    config = AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, pad_token_id=None, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        for parameter in model.parameters():  # far from zero, so that every token matters to every other
            parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return model.train(training)


def document(seed: int, size: int) -> Document:
    """Random tokens, most of them targets."""
    chance = np.random.default_rng(seed)
    targets = chance.random(size) < 0.7
    targets[0], targets[-1] = False, True
    return Document(chance.integers(0, VOCABULARY, size).astype(np.int32), targets)


ROWS = [[document(1, 5), document(2, 2), document(3, 9)], [document(4, 7), document(5, 3)]]  # 16 and 10 tokens


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def through_task(model: Any, task: Causal, rows: list[list[Document]]) -> tuple[float, dict[str, torch.Tensor]]:
    loss = task.loss(model, task.collate(rows, CPU))[TOKENS]
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), gradients(model)


def one_by_one(model: Any, rows: list[list[Document]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by the model's plain forward, a document at a time and without any packing."""
    total = 0.0
    for part in (part for row in rows for part in row):
        tokens = torch.from_numpy(part.tokens.astype(np.int64))
        logits = model(input_ids=tokens[None]).logits[0, :-1]
        each = functional.cross_entropy(logits, tokens[1:], reduction="none")
        loss = each[torch.from_numpy(part.targets[1:])].sum()
        loss.backward()
        total += loss.item()
    return total, gradients(model)


def assert_equal(
    got: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]], within: float = 1e-5
) -> None:
    assert got[0] == pytest.approx(expected[0], abs=1e-4)
    assert got[1].keys() == expected[1].keys()
    scale = max(1.0, *(gradient.abs().max().item() for gradient in expected[1].values()))
    for name, gradient in expected[1].items():
        assert (got[1][name] - gradient).abs().max() <= within * scale, name


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_packed_rows_are_those_of_the_documents_alone(kind: str, training: bool, flatten: bool) -> None:
    model = make(kind, training)
    task = Causal(model.forward, flatten)
    for rows in (ROWS[:1], ROWS, [ROWS[1], ROWS[0]]):
        expected = one_by_one(model, rows)
        assert max(gradient.abs().max().item() for gradient in expected[1].values()) > 0.1
        assert_equal(through_task(model, task, rows), expected)


@pytest.mark.parametrize("flatten", [False, True])
def test_counts_and_shapes(flatten: bool) -> None:
    task = Causal(make("llama").forward, flatten)
    batch = task.collate(ROWS, CPU)
    assert task.counts(batch) == {TOKENS: sum(int(part.targets.sum()) for row in ROWS for part in row)}
    assert batch.useful_tokens == 26
    assert batch.input_ids.shape == batch.position_ids.shape == ((1, 32) if flatten else (2, 16))
    first = batch.position_ids.flatten()[:16].tolist()
    assert first == [*range(5), *range(2), *range(9)]
    assert len(batch.keep) <= 32 - 1  # fewer columns than tokens


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_row_adds_nothing_and_can_be_differentiated(kind: str, flatten: bool) -> None:
    model = make(kind, training=True)
    task = Causal(model.forward, flatten)
    for rows in ([[]], [[], []]):
        batch = task.collate(rows, CPU)
        assert (task.counts(batch), batch.useful_tokens) == ({TOKENS: 0}, 0)
        loss, found = through_task(model, task, rows)
        assert loss == 0.0
        assert set(found) == {name for name, _ in model.named_parameters()}  # every rank reduces every gradient
        assert all(not gradient.any() for gradient in found.values())
    assert_equal(through_task(model, task, [*ROWS, []]), one_by_one(model, ROWS))
    assert_equal(through_task(model, task, [[], *ROWS]), one_by_one(model, ROWS))


def test_a_row_without_targets_adds_nothing() -> None:
    model = make("llama")
    mute = Document(np.arange(6, dtype=np.int32), np.zeros(6, dtype=np.bool_))
    task = Causal(model.forward, flatten=False)
    loss, found = through_task(model, task, [[mute]])
    assert loss == 0.0
    assert not any(gradient.any() for gradient in found.values())
    assert task.counts(task.collate([[mute]], CPU)) == {TOKENS: 0}


@pytest.mark.parametrize("kind", KINDS)
def test_models_without_logits_to_keep(kind: str) -> None:
    model = make(kind)

    class Old(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
            return self.inner(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    old = Old()
    got = through_task(old, Causal(old.forward, flatten=False), ROWS)
    loss, expected = one_by_one(model, ROWS)
    assert_equal(got, (loss, {f"inner.{name}": gradient for name, gradient in expected.items()}))


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_these_models_keep_documents_apart(kind: str, flatten: bool) -> None:
    model = make(kind)
    assert not Causal(model.forward, flatten).documents_leak(model, VOCABULARY, CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_does_not_see_positions_is_found_out(kind: str) -> None:
    model = make(kind)

    class Deaf(torch.nn.Module):
        def forward(
            self, input_ids: torch.Tensor, position_ids: torch.Tensor, logits_to_keep: Any, use_cache: bool
        ) -> SimpleNamespace:
            counted = torch.arange(position_ids.shape[1]).expand_as(position_ids)
            kept = model(
                input_ids=input_ids, position_ids=counted, logits_to_keep=logits_to_keep, use_cache=use_cache
            ).logits
            return SimpleNamespace(logits=kept)

    deaf = Deaf()
    assert Causal(deaf.forward, flatten=False).documents_leak(deaf, VOCABULARY, CPU)
