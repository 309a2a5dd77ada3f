"""Sequence classification: records to documents, and losses that are transformers' own, whatever shares a batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from distft.data.processors import causal_tokenizer, encoder_tokenizer
from distft.data.records import Document, Encoded, Record
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.recipe.tasks import SequenceClassification
from distft.tasks import sequence_classification
from distft.tasks.protocol import Setting, TaskSpec
from distft.tasks.sequence_classification import (
    SEQUENCES,
    Classification,
    ClassificationEncoder,
    label_names,
    texts_of,
)
from distft.tasks.shared.padding import DROPPED, TRUNCATED

CPU = torch.device("cpu")
LABELS = ("bad", "good", "neutral")
WAYS = ["single", "multi-label", "regression"]
ANSWERS: dict[str, list[Any]] = {
    "single": ["good", "bad", "neutral", "good"],
    "multi-label": [["good"], [], ["neutral", "bad"], ["bad", "good", "neutral"]],
    "regression": [1, -0.5, "2.25", 0.0],
}
TEXTS = ["a", "the old cat met the other cat", "no, no, no", "what is it that it is not?"]


def spec_of(way: str = "single", **fields: str) -> TaskSpec:
    return sequence_classification.spec(
        SequenceClassification.model_validate({"type": "sequence-classification", "kind": way}), fields
    )


@cache
def tokenizer() -> Any:
    return encoder_tokenizer(iter(TEXTS), 300)


def encoder(way: str = "single", row: int = 64, drop: bool = False, **fields: str) -> ClassificationEncoder:
    labels = () if way == "regression" else LABELS
    return ClassificationEncoder(tokenizer(), way, labels, fields, row, drop)


def record(text: Any = "the cat", label: Any = "good", **more: Any) -> Record:
    return Record("a.csv:7", {"text": text, "label": label, **more})


def only(encoded: Encoded) -> Document:
    [document] = encoded.documents
    return document


def documents(way: str, answered: bool = True) -> list[Document]:
    return [
        only(encoder(way).encode(record(text, label), answered))
        for text, label in zip(TEXTS, ANSWERS[way], strict=True)
    ]


def make(way: str, architecture: str = "bert") -> Any:
    sizes: dict[str, Any] = {
        "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
        "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24},
        "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
        "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    }[architecture]
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer()),
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": tokenizer().pad_token_id, **sizes},
        **spec_of(way).model.head(LABELS),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # far from zero, so that every token matters
            parameter.data.mul_(4.0) if parameter.dim() > 1 else None
    return model.eval()


def setting(labels: Sequence[str] = LABELS) -> Setting:
    recipe = Recipe.model_validate(
        {
            "task": {"type": "sequence-classification"},
            "model": {"path": "/m"},
            "data": {"train": "/d", "row_tokens": 32},
            "train": {"steps": 1},
        }
    )
    return Setting(recipe, labels, tokenizer)


def task_of(way: str, model: Any) -> Classification:
    return spec_of(way).build(setting(), model)


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "value", "expected"),
    [
        ("single", "good", ["good"]),
        ("single", "  good ", ["good"]),
        ("single", 3, ["3"]),
        ("single", 0, ["0"]),
        ("single", 0.5, ["0.5"]),
        ("single", False, ["False"]),
        ("single", "a, b", ["a, b"]),
        ("multi-label", ["a", "b"], ["a", "b"]),
        ("multi-label", ("a",), ["a"]),
        ("multi-label", [1, None, " x ", ""], ["1", "x"]),
        ("multi-label", "a, b,,c ", ["a", "b", "c"]),
        ("multi-label", '["a", "b, c"]', ["a", "b, c"]),
        ("multi-label", ' ["a"]', ["a"]),
        ("multi-label", "a", ["a"]),
        ("multi-label", 7, ["7"]),
        ("multi-label", None, []),
        ("multi-label", "", []),
        ("multi-label", [], []),
        ("multi-label", "[]", []),
    ],
)
def test_shapes_that_labels_come_in(way: str, value: Any, expected: list[str]) -> None:
    assert label_names(record(label=value), way, {}) == expected
    renamed = Record("x:1", {"text": "t", "stars": value})
    assert label_names(renamed, way, {"label": "stars"}) == expected


@pytest.mark.parametrize(
    ("way", "value", "said"),
    [
        ("single", None, "a.csv:7 has no label; give it one, or leave the record out"),
        ("single", " ", "a.csv:7 has no label"),
        (
            "single",
            ["good"],
            "a.csv:7: label is a list, ['good']; give one label without brackets, or set task.kind to",
        ),
        ("single", {"good": 1}, "a.csv:7 has no label"),
        ("single", "goood", "a.csv:7: label 'goood' is not one of this run's: bad, good, neutral; correct it, or name"),
        ("multi-label", ["good", "x"], "a.csv:7: label 'x' is not one of this run's: bad, good, neutral"),
        ("multi-label", "[good", "a.csv:7: label is not a valid list of labels: [good"),
        ("regression", "x", "a.csv:7: label must be a number, not 'x'"),
        ("regression", None, "a.csv:7: label must be a number, not 'None'"),
        ("regression", "nan", "a.csv:7: label must be a number, not 'nan'"),
        ("regression", float("inf"), "a.csv:7: label must be a number, not 'inf'"),
        ("multi-label", "[" * 100_000, "a.csv:7: label is not a valid list of labels: [[["),
        (
            "regression",
            1e39,
            "a.csv:7: label must be a number, not '1e+39'; the largest that can be learned is 3.4e+38",
        ),
        ("regression", "-1e39", "a.csv:7: label must be a number, not '-1e39'; the largest that can be learned is 3.4"),
        ("regression", 10**400, f"a.csv:7: label must be a number, not '1{'0' * 59}'; the largest that can be learned"),
        ("regression", [1.0], "a.csv:7: label must be a number, not '[1.0]'"),
    ],
)
def test_a_wrong_label_is_named_with_its_record(way: str, value: Any, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        encoder(way).encode(record(label=value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, 3, ["a"], "\ud800"])
def test_a_text_that_is_none_is_named_with_its_record(text: Any) -> None:
    with pytest.raises(UserError, match=r"^a\.csv:7"):
        encoder().encode(record(text))
    with pytest.raises(UserError, match=r"a\.csv:7 has no column 'text'"):
        encoder().encode(Record("a.csv:7", {"label": "good"}))


def test_documents_hold_tokens_and_labels() -> None:
    assert only(encoder().encode(record())).columns["label"].tolist() == [1]
    assert only(encoder("multi-label").encode(record(label=["neutral", "bad"])))["label"].tolist() == [1.0, 0.0, 1.0]
    assert only(encoder("regression").encode(record(label="2.5")))["label"].tolist() == [2.5]
    for way in WAYS:
        for answered in (True, False):
            one = documents(way, answered)[1]
            assert (one.size, one.targets) == (len(one["tokens"]), 1)
            assert one["tokens"].tolist() == tokenizer()(TEXTS[1])["input_ids"]
            assert len(one["label"]) == (0 if not answered else 3 if way == "multi-label" else 1)
            if answered:
                assert {name: column.dtype for name, column in one.columns.items()} == encoder(way).columns


def test_pairs_of_texts() -> None:
    paired = record("the cat", text_pair="the other cat")
    assert texts_of(paired, {}) == ["the cat", "the other cat"]
    document = only(encoder().encode(paired))
    expected = tokenizer()("the cat", "the other cat", return_token_type_ids=True)
    assert document["tokens"].tolist() == expected["input_ids"]
    assert document["types"].tolist() == expected["token_type_ids"]
    assert set(document["types"].tolist()) == {0, 1}
    assert texts_of(record(text_pair=None), {}) == ["the cat"]
    renamed = {"text": "premise", "text_pair": "hypothesis"}
    one = Record("x:1", {"premise": "a", "hypothesis": "b", "label": "good"})
    assert texts_of(one, renamed) == list(spec_of(**renamed).texts(one)) == ["a", "b"]
    with pytest.raises(UserError, match="x:2: hypothesis must be a text, not null"):
        texts_of(Record("x:2", {"premise": "a", "hypothesis": None}), renamed)


def test_what_is_longer_than_a_row_is_truncated_and_noted() -> None:
    text = "cat " * 50
    short, long = encoder(row=16).encode(record("cat")), encoder(row=16).encode(record(text))
    assert (short.notes, long.notes) == ({}, {TRUNCATED: 1})
    document = only(long)
    assert document.size == len(document["tokens"]) == 16
    whole = tokenizer()(text)["input_ids"]
    assert document["tokens"].tolist() == [*whole[:15], tokenizer().sep_token_id]
    pair = only(encoder(row=16).encode(record(text, text_pair="the")))
    assert pair.size == 16
    kept = tokenizer()(" the", add_special_tokens=False)["input_ids"]
    assert pair["tokens"].tolist()[-len(kept) - 1 :] == [*kept, tokenizer().sep_token_id]  # the longer one was cut


def test_dropped_unless_it_is_to_be_predicted() -> None:
    found = encoder(row=16, drop=True).encode(record("cat " * 50))
    assert (found.documents, found.notes) == ([], {DROPPED: 1})
    assert only(encoder(row=16, drop=True).encode(record("cat " * 50), answered=False)).size == 16


def test_a_text_without_tokens_becomes_no_document() -> None:
    """A decoder's tokenizer puts nothing around it."""
    bare = causal_tokenizer(iter(TEXTS), 300)
    found = ClassificationEncoder(bare, "single", LABELS, {}, 64, False).encode(record(""))
    assert found.documents == []
    assert len(found.notes) == 1


def test_what_is_to_be_predicted_needs_no_label() -> None:
    for way in WAYS:
        assert only(encoder(way).encode(Record("x:1", {"text": "a"}), answered=False))["label"].size == 0


def test_digest_tells_encoders_apart() -> None:
    others = [encoder(way) for way in WAYS] + [encoder(row=65), encoder(drop=True), encoder(text="body")]
    others.append(ClassificationEncoder(tokenizer(), "single", LABELS[::-1], {}, 64, False))
    assert len({one.digest for one in others}) == len(others)
    assert encoder().digest == encoder().digest


def test_a_call_of_the_tokenizer_leaves_the_digest_alone() -> None:
    before = encoder().digest
    tokenizer()("a b c d", truncation=True, max_length=3, padding="max_length")
    assert encoder().digest == before


# --- losses -----------------------------------------------------------------------------------------------------------


def by_transformers(model: Any, way: str, documents: list[Document]) -> torch.Tensor:
    """Its own mean loss, with the tokenizer's own padding, times the number of documents."""
    batch = tokenizer().pad(
        {
            "input_ids": [one["tokens"].tolist() for one in documents],
            "token_type_ids": [one["types"].tolist() for one in documents],
        },
        return_tensors="pt",
    )
    values = np.stack([one["label"] for one in documents])
    labels = torch.from_numpy(values if way == "multi-label" else values[:, 0])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if model.config.model_type == "bert":
        inputs["token_type_ids"] = batch["token_type_ids"]
    loss: torch.Tensor = model(**inputs, labels=labels.long() if way == "single" else labels).loss
    return loss * len(documents)


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "llama", "gpt2"])
@pytest.mark.parametrize("way", WAYS)
def test_loss_and_gradients_are_transformers_own(way: str, architecture: str) -> None:
    model = make(way, architecture)
    task = task_of(way, model)
    batch = task.collate([[one] for one in documents(way)], CPU)
    assert task.counts(batch) == {SEQUENCES: 4}
    assert batch.useful_tokens == sum(one.size for one in documents(way))
    loss = task.loss(model, batch)[SEQUENCES]
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    expected = by_transformers(model, way, documents(way))
    expected.backward()
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_pairs_are_seen_as_pairs() -> None:
    model = make("single")
    pairs = [record("the cat", text_pair="no"), record("no", "bad", text_pair="the old cat met it")]
    rows = [only(encoder().encode(one)) for one in pairs]
    task = task_of("single", model)
    loss = task.loss(model, task.collate([rows], CPU))[SEQUENCES]
    torch.testing.assert_close(loss, by_transformers(model, "single", rows), rtol=1e-5, atol=1e-5)
    blind = [Document({**one.columns, "types": np.zeros(one.size, np.uint8)}, one.size) for one in rows]
    assert (task.loss(model, task.collate([blind], CPU))[SEQUENCES] - loss).abs() > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("way", WAYS)
def test_a_document_knows_nothing_of_its_neighbours(way: str, architecture: str) -> None:
    model = make(way, architecture)
    task = task_of(way, model)
    rows = documents(way)
    with torch.no_grad():
        together = task.predict(model, task.collate([rows[:3], [], rows[3:]], CPU))
        alone = [task.predict(model, task.collate([[one]], CPU))[0] for one in rows]
        total = task.loss(model, task.collate([rows], CPU))[SEQUENCES].item()
    assert sum(one["loss"] for one in alone) == pytest.approx(total, abs=1e-4)
    for one, other in zip(together, alone, strict=True):
        assert one["output"] == pytest.approx(other["output"], abs=1e-5)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["label"] == other["label"]


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("way", WAYS)
def test_without_documents_the_graph_is_the_same_and_the_loss_zero(way: str, architecture: str) -> None:
    model = make(way, architecture)
    task = task_of(way, model)
    task.loss(model, task.collate([documents(way)], CPU))[SEQUENCES].backward()
    full = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    for rows in ([[]], [[], []]):
        model.zero_grad()
        batch = task.collate(rows, CPU)
        loss = task.loss(model, batch)[SEQUENCES]
        assert (loss.item(), loss.dtype, loss.shape, task.counts(batch)) == (0.0, torch.float32, (), {SEQUENCES: 0})
        assert batch.useful_tokens == 0
        loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert set(found) == full
        assert not any(gradient.any() for gradient in found.values())
    assert task.predict(model, task.collate([[]], CPU)) == []


def test_a_decoder_without_a_filler_gets_one() -> None:
    model = make("single", "llama")
    model.config.pad_token_id = None
    task = task_of("single", model)
    assert model.config.pad_token_id == tokenizer().pad_token_id
    rows = documents("single")
    loss = task.loss(model, task.collate([rows], CPU))[SEQUENCES]
    torch.testing.assert_close(loss, by_transformers(model, "single", rows), rtol=1e-5, atol=1e-5)


def test_a_decoder_takes_the_end_of_a_text_for_a_filler_and_is_refused_where_there_is_neither() -> None:
    model = make("single", "llama")
    model.config.pad_token_id = None
    bare = deepcopy(tokenizer())
    bare.pad_token = bare.eos_token = None
    with pytest.raises(
        UserError, match=r"model\.path: the tokenizer has neither a padding nor an end-of-sequence token"
    ):
        spec_of().build(replace(setting(), processor=lambda: bare), model)
    bare.eos_token = bare.convert_ids_to_tokens(5)
    spec_of().build(replace(setting(), processor=lambda: bare), model)
    assert model.config.pad_token_id == 5


def test_a_model_that_reads_the_last_place_is_refused() -> None:
    model = make("single")
    model.config.summary_type = "last"
    with pytest.raises(UserError, match=r"cannot be used for texts padded on the right"):
        spec_of().build(setting(), model)


def test_bf16_is_scored_in_fp32() -> None:
    model = make("single").to(torch.bfloat16)
    task = task_of("single", model)
    assert task.loss(model, task.collate([documents("single")], CPU))[SEQUENCES].dtype == torch.float32


# --- predictions ------------------------------------------------------------------------------------------------------


def test_outputs_are_probabilities_or_the_number() -> None:
    for way in WAYS:
        model = make(way)
        task = task_of(way, model)
        with torch.no_grad():
            batch = task.collate([documents(way, answered=False)], CPU)
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            found = task.predict(model, batch)
        assert [set(outcome) for outcome in found] == [{"output"}] * 4
        expected = {"single": logits.softmax(-1), "multi-label": logits.sigmoid(), "regression": logits}[way]
        torch.testing.assert_close(torch.tensor([outcome["output"] for outcome in found]), expected)


def outcome(output: list[float], label: list[float]) -> dict[str, Any]:
    return {"output": output, "label": label, "loss": 0.5, "targets": 1}


def test_scores_and_answers() -> None:
    single = task_of("single", make("single"))
    outcomes = [outcome([0.1, 0.8, 0.1], [1]), outcome([0.5, 0.2, 0.3], [2]), outcome([0.6, 0.3, 0.1], [0])]
    assert single.score(outcomes).scores["accuracy"] == pytest.approx(2 / 3)
    assert single.answer(outcomes[0]) == {"label": "good", "scores": dict(zip(LABELS, [0.1, 0.8, 0.1], strict=True))}
    several = task_of("multi-label", make("multi-label"))
    outcomes = [outcome([0.9, 0.2, 0.6], [1.0, 0.0, 1.0]), outcome([0.9, 0.1, 0.5], [0.0, 0.0, 0.0])]
    assert several.score(outcomes).scores["accuracy"] == pytest.approx(1 / 2)
    assert several.score(outcomes).scores["f1"] == pytest.approx(2 * 2 / (3 + 2))
    assert several.answer(outcomes[0])["label"] == ["bad", "neutral"]
    assert several.answer(outcome([0.1, 0.1, 0.1], []))["label"] == []
    number = task_of("regression", make("regression"))
    outcomes = [outcome([1.0], [2.0]), outcome([3.0], [3.0]), outcome([5.0], [6.5])]
    assert number.score(outcomes).scores["mae"] == pytest.approx(2.5 / 3)
    assert number.score(outcomes).scores["mse"] == pytest.approx((1 + 2.25) / 3)
    assert number.answer(outcomes[0]) == {"value": 1.0}
    for task in (single, several, number):
        assert task.score([]).scores == {}
        assert task.join(outcomes[:1]) == outcomes[0]
