"""Encoder-decoders that are given sources in one row and targets in another, beside the same pairs padded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from distft.data.records import Document
from distft.model.document_attention import offer
from distft.recipe.tasks import Seq2SeqLM
from distft.tasks.seq2seq_lm import seq2seq_task
from distft.tasks.shared import flat_pairs
from distft.tasks.shared.boundaries import VARLEN
from distft.tasks.shared.decoder_targets import Targets
from distft.tasks.shared.encoder_decoder import TOKENS, EncoderDecoder
from distft.tasks.shared.padding import pack_json, row_width

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own

CPU, VOCABULARY = torch.device("cpu"), 97
READ, WRITTEN = (11, 3, 20, 3, 7, 1, 20, 11), (5, 9, 2, 9, 7, 12, 2, 1)  # two pairs of one size; 76 tokens and 47
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "max_position_embeddings": 24,  # fewer than a row has tokens
    **dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32),
    **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "dropout_rate"), 0.0),
}
SIZES |= {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 2, "decoder_start_token_id": 2}
T5: dict[str, Any] = {"d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "relative_attention_max_distance": 8}
T5 |= {"relative_attention_num_buckets": 6}
FAMILIES: dict[str, dict[str, Any]] = {
    "bart": {},
    "mbart": {},
    "marian": {},
    "pegasus": {},
    "blenderbot": {},
    "m2m_100": {},  # counts positions by tokens, and past fillers; NLLB too
    "t5": T5,  # with scores by distance
    "mt5": T5,
}


def model_of(architecture: str, attention: str) -> Any:
    offer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **{**SIZES, **FAMILIES.get(architecture, T5)})
    made: Any = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    if FAMILIES.get(architecture) == {}:
        for parameter in made.parameters():  # far from zero, as T5's are, so that every token matters to every other
            parameter.data.mul_(4.0) if parameter.dim() > 1 else None
    return made.train()


class Numbers:
    """A tokenizer that finds nothing, and shows tokens as they are."""

    eos_token_id = 2

    def __call__(self, *texts: Any, **rest: Any) -> dict[str, list[int]]:
        return {"input_ids": [], "token_type_ids": []}

    def batch_decode(self, rows: Any, **rest: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in rows.tolist()]


def task_of(model: Any) -> EncoderDecoder:
    settings = Seq2SeqLM(type="seq2seq-lm", beams=2, longest_target=8)
    return seq2seq_task(Targets(Numbers(), 8), settings, model)


def pair(index: int, read: int, written: int) -> Document:
    draw = np.random.default_rng(index)
    tokens, labels = (draw.integers(1, VOCABULARY, size=size).astype(np.int32) for size in (read, written))
    columns = {"tokens": tokens, "types": np.zeros(read, np.uint8), "labels": labels, "about": pack_json("right")}
    return Document(columns, read, written, draw=index)


ROWS = [[pair(index, *sizes)] for index, sizes in enumerate(zip(READ, WRITTEN, strict=True))]


def learned(architecture: str, attention: str, again: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """The sum of the losses of a micro-batch, and its gradients."""
    model = model_of(architecture, attention)
    if again:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    task = task_of(model)
    batch = task.collate(ROWS, CPU)
    assert (batch.flat is not None) == (attention == VARLEN)
    loss = task.loss(model, batch)[TOKENS]
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


def compare(ours: Any, theirs: Any) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    scale = max(float(gradient.abs().max()) for gradient in theirs[1].values())
    for key, gradient in ours[1].items():
        assert float((gradient - theirs[1][key]).abs().max()) <= 1e-5 * scale, key


@pytest.mark.parametrize("architecture", FAMILIES)
def test_losses_and_gradients_are_those_of_padded_pairs(architecture: str) -> None:
    compare(learned(architecture, VARLEN), learned(architecture, "sdpa"))


@pytest.mark.parametrize("architecture", ["bart", "m2m_100", "t5"])
def test_filler_at_the_end_of_rows_changes_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    found = learned(architecture, VARLEN)
    monkeypatch.setattr(flat_pairs, "row_width", lambda size, limit, on_gpu: row_width(size, limit, True))
    batch = task_of(model_of(architecture, VARLEN)).collate(ROWS, CPU)
    assert batch.flat is not None
    assert [sum(row.boundaries.sizes) for row in (batch.flat.read, batch.flat.written)] == [128, 64]
    compare(learned(architecture, VARLEN), found)


def test_filler_always_has_something_to_look_at() -> None:
    made = flat_pairs.FlatPair.of([60, 4], [3, 4], (60, 4), on_gpu=True)
    assert made.read.boundaries.sizes == (4, 60, 64)
    assert made.written.boundaries.sizes == (4, 3, 57)


@pytest.mark.parametrize("architecture", ["bart", "t5"])
def test_recomputed_activations_give_the_same_gradients(architecture: str) -> None:
    (loss, gradients), (other, others) = learned(architecture, VARLEN), learned(architecture, VARLEN, again=True)
    assert loss == other
    assert all(torch.equal(gradient, others[key]) for key, gradient in gradients.items())


@pytest.mark.parametrize("architecture", ["marian", "t5"])
def test_a_micro_batch_without_documents_keeps_the_graph(architecture: str) -> None:
    model = model_of(architecture, VARLEN)
    task = task_of(model)
    loss = task.loss(model, task.collate([[], []], CPU))[TOKENS]
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert learned(architecture, VARLEN)[1].keys() == {k for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["bart", "m2m_100", "t5"])
def test_predictions_are_those_of_padded_pairs(architecture: str) -> None:
    """What is written, by documents that are padded, and each loss, in their order."""
    found = []
    for attention in (VARLEN, "sdpa"):
        model = model_of(architecture, attention).eval()
        task = task_of(model)
        with torch.no_grad():
            found.append(task.predict(model, task.collate(ROWS, CPU)))
    for ours, theirs in zip(*found, strict=True):
        assert ours["text"] == theirs["text"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_scores_by_distance_that_cannot_be_handed_over_keep_rows_padded() -> None:
    """UMT5 would make them for all pairs of tokens of a row."""
    model = model_of("umt5", VARLEN)
    task = task_of(model)
    assert not task.flat
    assert task.collate(ROWS, CPU).flat is None
