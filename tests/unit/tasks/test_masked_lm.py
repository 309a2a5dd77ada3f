"""Masked language modelling: what is hidden follows from the document's draw alone, and the loss is a plain one."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from distft.data.processors import causal_tokenizer, encoder_tokenizer
from distft.data.records import Document, Encoded, Record
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.recipe.tasks import MaskedLM
from distft.tasks import masked_lm
from distft.tasks.masked_lm import TOKENS, Masked, MaskedEncoder, hidden
from distft.tasks.protocol import Setting
from distft.tasks.shared.padding import DROPPED, TRUNCATED
from tests.unit.tasks.whole import check_cut

CPU = torch.device("cpu")
TEXTS = ["a", "the old cat met the other cat", "no, no, no, it is not so", "what is it that it is not? " * 3]
SPEC = masked_lm.spec(MaskedLM(type="masked-lm"), {})


@cache
def tokenizer() -> Any:
    return encoder_tokenizer(iter(TEXTS), 300)


def encoder(row: int = 64, overlong: str = "split", **fields: str) -> MaskedEncoder:
    return MaskedEncoder(tokenizer(), 0.15, fields, row, overlong)


def record(text: Any, **more: Any) -> Record:
    return Record("a.txt:7", {"text": text, **more})


def only(encoded: Encoded) -> Document:
    [document] = encoded.documents
    return document


@pytest.mark.parametrize("overlong", ["split", "truncate", "drop"])
def test_whole_texts_are_cut_as_the_encoder_cuts_them(tmp_path: Path, overlong: str) -> None:
    texts = [{"text": " ".join(TEXTS[i % 3] for i in range(n))} for n in range(1, 30)] + [{"text": ""}]
    folders = set()
    for row in (8, 9, 10, 33, 200):
        recipe = setting().recipe.data.model_copy(update={"row_tokens": row, "overlong": overlong})
        assert SPEC.cut is not None
        folders.add(check_cut(tmp_path, texts, encoder(row, overlong), SPEC.cut(recipe)))
    assert len(folders) == 1


def documents() -> list[Document]:
    return [replace(only(encoder(200).encode(record(text))), draw=9 + index) for index, text in enumerate(TEXTS)]


def setting(processor: Any = None) -> Setting:
    recipe = {"task": {"type": "masked-lm"}, "model": {"path": "/m"}, "data": {"train": "/d"}, "train": {"steps": 1}}
    return Setting(Recipe.model_validate(recipe), (), lambda: processor or tokenizer())


def make(architecture: str = "bert") -> Any:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if architecture == "distilbert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    config = AutoConfig.for_model(
        architecture, vocab_size=len(tokenizer()), pad_token_id=tokenizer().pad_token_id, **sizes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data.mul_(4.0) if parameter.dim() > 1 else None
    return model.eval()


def task_of(model: Any, share: float = 0.15) -> Masked:
    return masked_lm.spec(MaskedLM(type="masked-lm", mask=share), {}).build(setting(), model)


# --- records ----------------------------------------------------------------------------------------------------------


def test_documents_hold_tokens_and_which_are_special() -> None:
    document = only(encoder().encode(record(TEXTS[1])))
    assert document["tokens"].tolist() == tokenizer()(TEXTS[1])["input_ids"]
    assert document["special"].tolist() == [True, *[False] * (document.size - 2), True]
    assert document["mask"].tolist() == [tokenizer().mask_token_id, len(tokenizer())]
    assert {name: column.dtype for name, column in document.columns.items()} == encoder().columns
    marked = only(encoder().encode(record("the [MASK] cat [SEP]")))
    kept = [token for token, special in zip(marked["tokens"], marked["special"], strict=True) if not special]
    assert not set(kept) & set(tokenizer().all_special_ids)


def test_long_texts_are_split_truncated_or_dropped() -> None:
    text = "the other cat is not so " * 20
    tokens = tokenizer()(text, add_special_tokens=False)["input_ids"]
    split, cut, none = (encoder(16, overlong).encode(record(text)) for overlong in ("split", "truncate", "drop"))
    assert [one.notes for one in (split, cut, none)] == [
        {"longer than a row were split": 1},
        {TRUNCATED: 1},
        {DROPPED: 1},
    ]
    assert [token for one in split.documents for token in one["tokens"][1:-1].tolist()] == tokens
    assert {one.size for one in split.documents[:-1]} == {16}
    assert all(one["special"][[0, -1]].all() and one.size <= 16 for one in split.documents)
    assert [one["tokens"].tolist() for one in cut.documents] == [split.documents[0]["tokens"].tolist()]
    assert none.documents == []
    for overlong in ("split", "truncate", "drop"):
        assert encoder(16, overlong).encode(record("cat")).notes == {}
        exact = record(tokenizer().decode(tokens[:14]))
        assert only(encoder(16, overlong).encode(exact)).size <= 16


def test_a_text_without_any_token_is_dropped() -> None:
    found = encoder().encode(record(""))
    assert (found.documents, found.notes) == ([], {"without any token were dropped": 1})


def test_what_is_wrong_with_a_record_is_said() -> None:
    for text, said in (
        (3, "a.txt:7: text must be a text, not int"),
        ("\ud800", "a.txt:7 contains half of a surrogate pair"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            encoder().encode(record(text))
    assert only(encoder(text="body").encode(Record("x:1", {"body": "a cat"}))).size > 2


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    decoder = causal_tokenizer(iter(TEXTS), 300)
    with pytest.raises(UserError, match="masked-lm needs a tokenizer with the tokens cls, sep and mask"):
        SPEC.encoder(setting(decoder))
    assert isinstance(SPEC.encoder(setting()), MaskedEncoder)


def test_digest_tells_encoders_apart() -> None:
    others = [encoder(), encoder(65), encoder(overlong="drop"), encoder(text="body")]
    assert len({one.digest for one in others}) == 4
    assert encoder().digest == encoder().digest


# --- what is hidden ---------------------------------------------------------------------------------------------------


def long(size: int = 400, draw: int = 0) -> Document:
    """Special tokens at both ends and in the middle; all others are 10 and more."""
    tokens = np.arange(size, dtype=np.int32) + 10
    special = np.zeros(size, np.bool_)
    special[[0, size // 2, -1]] = True
    columns = {
        "tokens": tokens,
        "types": np.zeros(size, np.uint8),
        "special": special,
        "mask": np.array([4, 1000], np.int32),
    }
    return Document(columns, size, draw=draw)


@pytest.mark.parametrize("share", [0.15, 0.4])
def test_eight_of_ten_are_masked_one_is_anything_and_one_stays(share: float) -> None:
    ways = {"mask": 0, "same": 0, "other": 0}
    drawn = []
    for draw in range(300):
        document = long(draw=draw * 2**55)
        chosen, seen = hidden(document, share)
        assert len(chosen) == round(share * 397)
        assert not document["special"][chosen].any()
        assert sorted(set(chosen.tolist())) == chosen.tolist()
        for was, now in zip(document["tokens"][chosen], seen, strict=True):
            ways["mask" if now == 4 else "same" if now == was else "other"] += 1
            drawn += [now] if now not in (4, was) else []
    total = sum(ways.values())
    found = {name: number / total for name, number in ways.items()}
    assert found == pytest.approx({"mask": 0.8, "same": 0.1, "other": 0.1}, abs=0.01)
    assert 0 <= min(drawn) < 20
    assert 980 < max(drawn) < 1000
    assert abs(np.mean(drawn) - 500) < 30


def test_every_place_is_as_likely_as_any_other() -> None:
    counts = np.zeros(40)
    for draw in range(4000):
        chosen, _ = hidden(long(40, draw), 0.15)
        counts[chosen] += 1
    assert counts[[0, 20, 39]].tolist() == [0.0] * 3
    others = np.delete(counts, [0, 20, 39])
    assert len(chosen) == 6
    assert abs(others / (4000 * 6 / 37) - 1).max() < 0.2  # a standard deviation is 4 %


def test_it_depends_on_the_draw_and_nothing_else() -> None:
    first = hidden(long(draw=5), 0.15)
    assert all((a == b).all() for a, b in zip(first, hidden(long(draw=5), 0.15), strict=True))
    assert any((a != b).any() for a, b in zip(first, hidden(long(draw=6), 0.15), strict=True))
    task = task_of(make())
    rows = documents()
    together, other = task.collate([rows], CPU), task.collate([rows[2:], [], rows[:2]], CPU)
    width = [batch.padded.input_ids.shape[1] for batch in (together, other)]

    def of(batch: Any, width: int, index: int) -> list[tuple[int, int, int]]:
        """(place, what is there, what is seen) of one document."""
        own = batch.owners == index
        places = batch.at[own]
        return list(
            zip(
                (places % width).tolist(),
                batch.targets[own].tolist(),
                batch.padded.input_ids.view(-1)[places].tolist(),
                strict=True,
            )
        )

    assert [of(together, width[0], i) for i in range(4)] == [of(other, width[1], i) for i in (2, 3, 0, 1)]
    state = np.random.get_state()[1].sum(), torch.get_rng_state().sum()
    task.collate([rows], CPU)
    assert state == (np.random.get_state()[1].sum(), torch.get_rng_state().sum())


def test_at_least_one_is_hidden_unless_all_are_special() -> None:
    short = only(encoder().encode(record("a")))
    chosen, _ = hidden(short, 0.15)
    assert len(chosen) == 1
    marks = replace(short, columns={**short.columns, "special": np.ones(short.size, np.bool_)})
    assert [len(array) for array in hidden(marks, 0.15)] == [0, 0]
    task = task_of(make())
    assert task.counts(task.collate([[marks]], CPU)) == {TOKENS: 0}


# --- losses -----------------------------------------------------------------------------------------------------------


def plain(model: Any, task: Masked, rows: list[Document]) -> tuple[torch.Tensor, list[float]]:
    """transformers' own mean loss of each document alone, times its targets; hidden as the task has it."""
    losses = []
    for one in rows:
        chosen, seen = hidden(one, task._share)
        ids = torch.from_numpy(one["tokens"].astype(np.int64))[None]
        labels = torch.full_like(ids, -100)
        labels[0, chosen] = ids[0, chosen]
        ids[0, chosen] = torch.from_numpy(seen)
        losses.append(model(input_ids=ids, labels=labels).loss * len(chosen))
    return torch.stack(losses).sum(), [loss.item() for loss in losses]


@pytest.mark.parametrize("share", [0.15, 0.5])
@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_loss_and_gradients_are_plain_ones_whatever_shares_the_batch(architecture: str, share: float) -> None:
    model = make(architecture)
    task = task_of(model, share)
    rows = documents()
    batch = task.collate([rows[:1], [], rows[1:]], CPU)
    loss = task.loss(model, batch)[TOKENS]
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    expected, each = plain(model, task, rows)
    expected.backward()
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)
    assert batch.useful_tokens == sum(one.size for one in rows)
    with torch.no_grad():
        outcomes = task.predict(model, batch)
    assert [outcome["loss"] for outcome in outcomes] == pytest.approx(each, rel=1e-5)
    assert sum(outcome["targets"] for outcome in outcomes) == task.counts(batch)[TOKENS]


def test_without_documents_the_graph_is_the_same_and_the_loss_zero() -> None:
    model = make()
    task = task_of(model)
    task.loss(model, task.collate([documents()], CPU))[TOKENS].backward()
    full = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    for rows in ([[]], [[], []]):
        model.zero_grad()
        batch = task.collate(rows, CPU)
        loss = task.loss(model, batch)[TOKENS]
        assert (loss.item(), task.counts(batch), batch.useful_tokens) == (0.0, {TOKENS: 0}, 0)
        loss.backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert set(found) == full
        assert not any(gradient.any() for gradient in found.values())
    with torch.no_grad():
        assert task.predict(model, task.collate([[]], CPU)) == []


def test_bf16_is_scored_in_fp32() -> None:
    model = make().to(torch.bfloat16)
    task = task_of(model)
    assert task.loss(model, task.collate([documents()], CPU))[TOKENS].dtype == torch.float32


def test_scores_and_pieces_that_are_joined() -> None:
    task = task_of(make())
    outcomes = [{"loss": 3.0, "right": 1, "targets": 2}, {"loss": 1.0, "right": 2, "targets": 6}]
    whole = task.join(outcomes)
    assert whole == {"loss": 4.0, "right": 3, "targets": 8}
    expected = {"perplexity": math.exp(0.5), "accuracy": 3 / 8}
    assert task.score(outcomes).scores == task.score([whole]).scores == expected
    assert task.score([]).scores == {}
    assert task.answer(whole)["perplexity"] == pytest.approx(math.exp(0.5))
    assert math.isfinite(task.answer({"loss": 1e9, "right": 0, "targets": 1})["perplexity"])
