"""Tagging: no word loses its tag, a CRF never gives tags that cannot be, and a loss is the sum it says it is."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForTokenClassification, BertConfig, PreTrainedTokenizerFast

from distft.data.records import Document, Encoded, Record
from distft.errors import UserError
from distft.recipe.tasks import TokenClassification
from distft.tasks import labels as label_sets
from distft.tasks.shared.padding import DROPPED, TRUNCATED, Inputs, unpack_json
from distft.tasks.token_classification import task as token_classification
from distft.tasks.token_classification.crf import CRF, allowed_transitions, constrained, log_likelihood
from distft.tasks.token_classification.encoder import SPLIT, WITHOUT_WORDS, split_words
from distft.tasks.token_classification.task import Tagging, TaggingEncoder, crf_of, entities
from tests.unit.recipes import recipe

CPU = torch.device("cpu")
LABELS = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
BIOES = ("O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("LOC", "PER")))
LETTERS = "abcdefghijklmnopqrstuvwxyz"
GONE = "\x00"  # a word that the tokenizer makes nothing of


@functools.cache
def tokenizer_of(name: str = "letters") -> Any:
    """Letters with BERT's special tokens, or with a mark before each word; or RoBERTa's or GPT-2's bytes."""
    if name == "letters":
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
        made = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    if name == "marked":
        made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(f"▁{LETTERS}")}, []))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        return PreTrainedTokenizerFast(tokenizer_object=made)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=name == "prefixed")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["the old cat met the other cat"] * 3, trainer)
    if name == "roberta":
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")


def encoder(
    overlong: str = "split",
    row: int = 64,
    crf: bool = False,
    labels: Sequence[str] = LABELS,
    name: str = "letters",
    **of: str,
) -> TaggingEncoder:
    return TaggingEncoder(tokenizer_of(name), crf, tuple(labels), of, row, overlong)


def record(tokens: Any, tags: Any = None, **more: Any) -> Record:
    known = {} if tags is None else {"tags": tags.split() if isinstance(tags, str) and tags[:1] != "[" else tags}
    words = tokens.split(" ") if isinstance(tokens, str) and tokens[:1] != "[" else tokens
    return Record("data.conll:7", {"tokens": words, **known, **more})


def only(encoded: Encoded) -> Document:
    [document] = encoded.documents
    return document


def first_tokens(document: Document, name: str = "letters") -> list[str]:
    """Of each word; "" where it has none."""
    tokens = tokenizer_of(name).convert_ids_to_tokens(document["tokens"].tolist())
    return [tokens[start] if start >= 0 else "" for start in document["starts"]]


def model_of(labels: Sequence[str] = LABELS, crf: bool = False, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=56, num_labels=len(labels), pad_token_id=0, **sizes, **more)
    model = AutoModelForTokenClassification.from_config(config).eval()
    if crf:
        settings = TokenClassification(type="token-classification", crf=True)
        token_classification.spec(settings, {}).model.extend(model, labels)
        for parameter in model.crf.parameters():
            torch.nn.init.normal_(parameter)
    return model


def task_of(model: Any, labels: Sequence[str] = LABELS, crf: bool = False) -> Tagging:
    return Tagging(tuple(labels), crf, Inputs(model, tokenizer_of()))


SENTENCES = [
    record("ab c def g", "B-PER I-PER O B-LOC"),
    record("hij k", "O B-LOC"),
    record(f"lm {GONE} n opq rs", "B-PER I-PER I-PER O O"),
]


def encoded(records: Sequence[Record] = SENTENCES, answered: bool = True, **of: Any) -> list[Document]:
    return [document for one in records for document in encoder(**of).encode(one, answered).documents]


# --- records and what they become


def test_the_tag_of_a_word_is_at_its_first_token() -> None:
    document = only(encoder().encode(SENTENCES[0]))
    assert first_tokens(document) == ["a", "c", "d", "g"]
    assert document["starts"].tolist() == [1, 3, 4, 7]
    assert [LABELS[tag] for tag in document["tags"]] == ["B-PER", "I-PER", "O", "B-LOC"]
    assert (document.size, document.targets) == (9, 4)
    assert unpack_json(document["words"]) == ["ab", "c", "def", "g"]
    assert {name: column.dtype for name, column in document.columns.items()} == encoder().columns


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_word_without_tokens_shifts_no_other(place: int) -> None:
    words = ["ab", "c", "def", "g"]
    words.insert(place, GONE)
    document = only(encoder().encode(record(words, ["O"] * 5)))
    assert first_tokens(document) == [word[:1] if word != GONE else "" for word in words]
    assert (document.targets, len(document["tags"])) == (4, 5)


def test_a_word_that_looks_like_a_special_token_is_a_word() -> None:
    document = only(encoder().encode(record("ab [SEP] c", "O O B-PER")))
    assert first_tokens(document) == ["a", "[SEP]", "c"]


@pytest.mark.parametrize("name", ["roberta", "gpt2", "prefixed", "marked"])
def test_words_have_the_tokens_that_they_have_in_a_text(name: str) -> None:
    """Byte-level tokenizers see no blanks between words that are given one by one; then all would be glued together."""
    words = ["the", "cat", "met", "the", "old", "cat"]
    document = only(encoder(name=name).encode(record(words, ["O"] * 6)))
    assert first_tokens(document, name) == [f"Ġ{word}" if name != "marked" else "▁" for word in words]
    text = " ".join(words) if name == "marked" else f" {' '.join(words)}"
    assert document["tokens"].tolist() == tokenizer_of(name)(text)["input_ids"]
    assert unpack_json(document["words"]) == words


def test_lists_may_be_written_as_json_and_renamed_and_tags_be_numbers() -> None:
    plain = only(encoder(labels=("0", "1")).encode(record("ab c", [0, 1])))
    fields = {"tokens": "words", "tags": "ner_tags"}
    row = Record("data.csv:2", {"words": '["ab", "c"]', "ner_tags": "[0, 1]"})
    renamed = only(encoder(labels=("0", "1"), **fields).encode(row))
    assert all(np.array_equal(plain[name], renamed[name]) for name in plain.columns)
    spec = token_classification.spec(TokenClassification(type="token-classification"), fields)
    assert (list(spec.labels.find(row)), list(spec.texts(row))) == (["0", "1"], ["ab c"])


def test_what_is_to_be_predicted_needs_no_tags_and_may_be_a_text() -> None:
    for one in (record("ab c"), Record("x", {"text": " ab\u00a0c\n"}), record(None, text="ab c"), record("ab c", "X")):
        document = only(encoder(crf=True).encode(one, answered=False))
        assert first_tokens(document) == ["a", "c"]
        assert len(document["tags"]) == 0


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (record("ab c", "O"), "data.conll:7 has 2 words but 1 tags; give each word one"),
        (
            record("ab c", "O B-ORG"),
            "data.conll:7: tag 'B-ORG' is not one of this run's: O, B-LOC, B-PER, I-LOC, I-PER",
        ),
        (record(["ab", 3], "O O"), r"data.conll:7: tokens\[1\] must be a text, not int"),
        (record(["ab", None], "O O"), r"data.conll:7: tokens\[1\] must be a text, not NoneType"),
        (record(["ab", "\ud800"], "O O"), r"data.conll:7: tokens\[1\] contains half of a surrogate pair"),
        (record("ab c", ["O", True]), r"data.conll:7: tags\[1\] must be the name of a tag or its number, not True"),
        (record("ab c", ["O", None]), r"data.conll:7: tags\[1\] must be the name of a tag or its number, not None"),
        (record("ab c", ["O", ""]), r"data.conll:7: tags\[1\] must be the name of a tag or its number, not ''"),
        (record(["ab"], {"a": 1}), "data.conll:7: tags must be a list, or a list written in JSON, not"),
        (
            Record("a.csv:2", {"tokens": "ab c", "tags": "O O"}),
            "a.csv:2: tokens must be a list, or a list .* not 'ab c'",
        ),
        (Record("a.csv:2", {"tokens": '["ab"]'}), "a.csv:2 has no column 'tags'"),
        (Record("a.csv:2", {"text": "ab c", "tags": '["O"]'}), "a.csv:2 has no column 'tokens'"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(one: Record, message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder().encode(one)


@pytest.mark.parametrize(
    ("labels", "tags", "message"),
    [
        (
            LABELS,
            "O I-PER",
            "tag 'I-PER' of word 2 cannot follow 'O' in the labels' scheme; convert to IOB2, or set task.crf",
        ),
        (LABELS, "I-PER O", "tag 'I-PER' cannot begin a sentence in"),
        (LABELS, "B-PER I-LOC", "tag 'I-LOC' of word 2 cannot follow 'B-PER' in"),
        (BIOES, "O B-PER", "tag 'B-PER' cannot end a sentence in"),
    ],
)
def test_a_crf_refuses_tags_that_its_scheme_does_not_allow(labels: Sequence[str], tags: str, message: str) -> None:
    one = record("ab c", tags)
    with pytest.raises(UserError, match=f"data.conll:7: {message}"):
        encoder(crf=True, labels=labels).encode(one)
    only(encoder(crf=False, labels=labels).encode(one))
    only(encoder(crf=True, labels=labels).encode(one, answered=False))
    only(
        encoder(crf=True, labels=["O", "I-LOC", "I-PER", "B-PER"]).encode(record("ab c", "O I-LOC"))
    )  # IOB1, no scheme


def test_a_record_without_words_is_dropped_or_has_no_tags() -> None:
    assert encoder().encode(record([], [])) == Encoded([], {WITHOUT_WORDS: 1})
    for name in ("letters", "gpt2"):
        document = only(encoder(name=name).encode(record([]), answered=False))
        assert document.size == len(document["tokens"]) == len(document["types"]) >= 1
        for crf in (False, True):
            model = model_of(crf=crf)
            task = task_of(model, crf=crf)
            [outcome] = task.predict(model, task.collate([[document]], CPU))
            assert task.answer(outcome) == {"tags": [], "scores": [], "words": [], "entities": []}
    with pytest.raises(UserError, match="0 words but 1 tags"):
        encoder().encode(record([], "O"))


def test_digest_tells_encoders_apart() -> None:
    others = [encoder(crf=True), encoder("drop"), encoder(row=32), encoder(labels=BIOES), encoder(tokens="words")]
    digests = [one.digest for one in [encoder(), *others, encoder(name="roberta")]]
    assert len(set(digests)) == len(digests)
    assert encoder().digest == encoder().digest


# --- longer than a row


LONG = record("abc de fghi j klm nopqrstuvwxyz ab c", "B-PER I-PER I-PER I-PER I-PER I-PER I-PER O")  # 27 letters


def test_pieces_are_as_long_as_fits_and_an_overlong_word_is_alone() -> None:
    assert split_words([3, 2, 4, 1], 6) == [(0, 2), (2, 4)]
    assert split_words([0, 9, 0, 1, 2], 6) == [(0, 3), (3, 5)]
    assert split_words([9, 9], 6) == [(0, 1), (1, 2)]
    assert split_words([], 6) == [(0, 0)]


@pytest.mark.parametrize("crf", [False, True])
def test_split_sentences_are_joined_again(crf: bool) -> None:
    found = encoder("split", row=10, crf=crf).encode(LONG)
    assert found.notes == {SPLIT: 1}
    assert [unpack_json(document["words"]) for document in found.documents] == [
        ["abc", "de"], ["fghi", "j", "klm"], ["nopqrstuvwxyz"], ["ab", "c"]
    ]  # fmt: skip
    assert all(document.size <= 10 for document in found.documents)
    assert [document["edges"].tolist() for document in found.documents] == [
        [True, False], [False, False], [False, False], [False, True]
    ]  # fmt: skip
    for document in found.documents:
        assert first_tokens(document) == [word[0] for word in unpack_json(document["words"])]
        assert document["tokens"][[0, -1]].tolist() == [2, 3]
    assert [tag for document in found.documents for tag in document["tags"].tolist()] == [2] + [4] * 6 + [0]

    model = model_of(crf=crf)
    task = task_of(model, crf=crf)
    outcomes = task.predict(model, task.collate([found.documents], CPU))
    joined = task.join(outcomes)
    assert (len(joined["tags"]), len(joined["scores"]), joined["targets"]) == (8, 8, 8)
    assert joined["gold"] == [2] + [4] * 6 + [0]
    assert joined["words"] == LONG.fields["tokens"]
    assert joined["loss"] == pytest.approx(sum(outcome["loss"] for outcome in outcomes))
    assert 0 < joined["loss"] < 1000  # no piece is impossible for the CRF, though some begin inside an entity


def test_truncated_words_have_no_target_but_a_tag() -> None:
    document = only(encoder("truncate", row=10).encode(LONG))
    assert first_tokens(document) == ["a", "d", "f"] + [""] * 5
    assert (document.size, document.targets, document["edges"].tolist()) == (10, 3, [True, False])
    assert encoder("truncate", row=10).encode(LONG).notes == {TRUNCATED: 1}
    for crf in (False, True):
        model = model_of(crf=crf)
        task = task_of(model, crf=crf)
        batch = task.collate([[document]], CPU)
        assert task.counts(batch) == {"tags": 3}
        [outcome] = task.predict(model, batch)
        assert outcome["tags"][3:] == [0] * 5
        assert outcome["scores"][3:] == [0.0] * 5
        assert (len(outcome["gold"]), outcome["targets"]) == (8, 3)
        assert 0 < outcome["loss"] < 100


def test_a_word_that_is_longer_than_a_row_is_cut() -> None:
    found = encoder("split", row=8).encode(record([LETTERS], "O"))
    assert (only(found).size, only(found)["starts"].tolist(), found.notes) == (8, [1], {TRUNCATED: 1})


def test_dropped_unless_it_is_to_be_predicted() -> None:
    assert encoder("drop", row=10).encode(LONG) == Encoded([], {DROPPED: 1})
    assert len(encoder("drop", row=10).encode(LONG, answered=False).documents) == 4


# --- losses and predictions


def test_softmax_loss_is_that_of_transformers() -> None:
    model = model_of()
    task = task_of(model)
    batch = task.collate([encoded()], CPU)
    labels = torch.full_like(batch.padded.input_ids, -100)
    for row, document in enumerate(batch.padded.documents):
        for start, tag in zip(document["starts"], document["tags"], strict=True):
            if start >= 0:
                labels[row, int(start)] = int(tag)
    theirs = model(input_ids=batch.padded.input_ids, attention_mask=batch.padded.attention_mask, labels=labels).loss
    assert task.counts(batch) == {"tags": int((labels >= 0).sum())} == {"tags": 10}
    torch.testing.assert_close(task.loss(model, batch)["tags"], theirs * 10)
    assert task.factors({"tags": 10.0}) == {"tags": 0.1}


@pytest.mark.parametrize("labels", [LABELS, BIOES, ("DET", "NOUN", "VERB")])
def test_crf_loss_is_that_of_each_sentence_by_itself(labels: Sequence[str]) -> None:
    tags = {3: "DET VERB VERB", 5: "B-PER I-PER O O B-PER", 9: "S-PER O B-LOC I-LOC E-LOC"}[len(labels)]
    words = ["ab", "c", "def", "g", "hi"][: len(tags.split())]
    model = model_of(labels, crf=True)
    task = task_of(model, labels, crf=True)
    documents = encoded([record(words, tags), record(words[:1], tags.split()[:1])], crf=True, labels=labels)
    with_gap = [words[0], GONE, *words[2:]]  # nothing is known of the second word but what stands beside it
    documents += encoded([record(with_gap, tags)], crf=True, labels=labels)
    batch = task.collate([documents], CPU)
    expected = torch.zeros(())
    for document in documents:
        row = torch.tensor(document["tokens"][None].astype(np.int64))
        known = torch.tensor(document["starts"][None, :, None] >= 0)
        emissions = model(input_ids=row).logits[:, document["starts"]] * known
        scores = constrained(model.crf(), allowed_transitions(labels))
        gold = torch.tensor(document["tags"][None].astype(np.int64))
        expected = expected - log_likelihood(scores, emissions, gold, torch.ones_like(gold, dtype=torch.bool)).sum()
    torch.testing.assert_close(task.loss(model, batch)["tags"], expected)


@pytest.mark.parametrize("crf", [False, True])
def test_a_document_knows_nothing_of_its_neighbours(crf: bool) -> None:
    model = model_of(crf=crf)
    task = task_of(model, crf=crf)
    documents = encoded(crf=crf)
    together = task.predict(model, task.collate([documents, []], CPU))
    assert len(together) == 3
    total = 0.0
    for document, outcome in zip(documents, together, strict=True):
        batch = task.collate([[document]], CPU)
        [alone] = task.predict(model, batch)
        for key in ("tags", "gold", "words", "targets"):
            assert alone[key] == outcome[key]
        assert alone["scores"] == pytest.approx(outcome["scores"], abs=1e-6)
        assert alone["loss"] == pytest.approx(outcome["loss"], abs=1e-5)
        assert alone["loss"] == pytest.approx(task.loss(model, batch)["tags"].item(), abs=1e-5)
        total += alone["loss"]
    assert task.loss(model, task.collate([documents], CPU))["tags"].item() == pytest.approx(total, abs=1e-4)
    assert json.loads(json.dumps(together)) == together


@pytest.mark.parametrize("crf", [False, True])
def test_without_documents_the_graph_is_the_same_and_the_loss_zero(crf: bool) -> None:
    model = model_of(crf=crf)
    task = task_of(model, crf=crf)
    gone = encoded([record([GONE], "I-PER"), record([GONE, GONE], "O O")])  # nor has a sentence without tokens one
    for rows in ([[]], [[], []], [gone]):
        model.zero_grad()
        batch = task.collate(rows, CPU)
        loss = task.loss(model, batch)["tags"]
        assert (loss.item(), loss.dtype, loss.shape, task.counts(batch)) == (0.0, torch.float32, (), {"tags": 0})
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert crf == any(name.startswith("crf.") for name in gradients)
        assert all(gradient is not None and not gradient.any() for gradient in gradients.values())
    assert task.predict(model, task.collate([[]], CPU)) == []
    assert [outcome["tags"] for outcome in task.predict(model, task.collate([gone], CPU))] == [[0], [0, 0]]


def test_words_without_tokens_are_o_or_the_first_label() -> None:
    model = model_of(("X", "Y"))
    task = task_of(model, ("X", "Y"))
    [outcome] = task.predict(model, task.collate([encoded([record(f"a {GONE} b")], answered=False)], CPU))
    assert (outcome["tags"][1], outcome["scores"][1]) == (0, 0.0)
    assert outcome.keys() == {"tags", "scores", "words"}
    labels = ("B-X", "I-X", "O")
    for crf in (False, True):
        model = model_of(labels, crf=crf)
        task = task_of(model, labels, crf=crf)
        if crf:
            model.crf.end.data[1] = 50.0  # it would have B-X I-X I-X
        [outcome] = task.predict(model, task.collate([encoded([record(f"a {GONE} b {GONE}")], answered=False)], CPU))
        assert outcome["tags"][1::2] == [2, 2]
        assert not crf or outcome["tags"][2] != 1  # for after O it cannot be


def test_scores_are_probabilities_of_the_tags() -> None:
    model = model_of()
    task = task_of(model)
    [document] = encoded(SENTENCES[:1])
    [outcome] = task.predict(model, task.collate([[document]], CPU))
    logits = model(input_ids=torch.tensor(document["tokens"][None].astype(np.int64))).logits[0, document["starts"]]
    best = logits.softmax(-1).max(-1)
    assert outcome["tags"] == best.indices.tolist()
    assert outcome["scores"] == pytest.approx(best.values.tolist(), abs=1e-6)


@pytest.mark.parametrize("crf", [False, True])
def test_bf16_is_scored_in_fp32(crf: bool) -> None:
    model = model_of(crf=crf).bfloat16()
    task = task_of(model, crf=crf)
    batch = task.collate([encoded(crf=crf)], CPU)
    loss = task.loss(model, batch)["tags"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert loss.item() == pytest.approx(task.loss(model_of(crf=crf), batch)["tags"].item(), rel=0.02)


# --- training


def toy(generator: random.Random, labels: Sequence[str]) -> Record:
    """A letter tells the tag of a word, but I- only together with what stands before it."""
    words, tags = [], []
    for _ in range(generator.randint(1, 4)):
        kind, letter = generator.choice([("PER", "p"), ("LOC", "q"), ("", "r")])
        length = generator.randint(1, 3)
        if not kind:
            parts = ["O"] * length
        elif "S-PER" in labels:
            parts = [f"S-{kind}"] if length == 1 else [f"{p}-{kind}" for p in ["B", *"I" * (length - 2), "E"]]
        else:
            parts = [f"{prefix}-{kind}" for prefix in ["B", *"I" * (length - 1)]]
        words += [letter] + ["x"] * (length - 1) if kind else ["y"] * length
        tags += parts
    return record(words, tags)


def is_allowed(tags: Sequence[int], labels: Sequence[str]) -> bool:
    allowed = allowed_transitions(labels)
    start, end, transitions = (np.asarray(part) for part in (allowed.start, allowed.end, allowed.transitions))
    return bool(start[tags[0]] and end[tags[-1]] and all(transitions[a, b] for a, b in itertools.pairwise(tags)))


@pytest.mark.parametrize("labels", [LABELS, BIOES])
def test_a_crf_learns_and_never_predicts_what_cannot_be(labels: Sequence[str]) -> None:
    generator = random.Random(0)
    documents = encoded([toy(generator, labels) for _ in range(24)], crf=True, labels=labels)
    noise = [record([generator.choice("pqxyz") for _ in range(generator.randint(1, 20))]) for _ in range(30)]
    unknown = [encoded([one], answered=False, crf=True, labels=labels, row=8) for one in noise]  # most of them split
    model = model_of(labels, crf=True)
    task = task_of(model, labels, crf=True)
    batch, others = task.collate([documents], CPU), task.collate(unknown, CPU)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for step in range(25):
        loss = task.loss(model, batch)["tags"] * task.factors(task.counts(batch))["tags"]
        losses.append(loss.item())
        if step % 8 == 0:
            with torch.no_grad():
                outcomes = iter(task.predict(model, others))
            for sentence, parts in zip(noise, unknown, strict=True):
                joined = task.join(list(itertools.islice(outcomes, len(parts))))
                assert joined["words"] == sentence.fields["tokens"]
                assert is_allowed(joined["tags"], labels)
                assert all(0.0 < score < 1.0001 for score in joined["scores"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
    scores = task.score(task.predict(model, batch)).scores
    assert scores["f1"] > 0.8
    assert scores["accuracy"] > 0.9


class Engine:
    """As DeepSpeed's: calls the module that it holds, and gives out nothing else of it."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, **inputs: Any) -> Any:
        return self.module(**inputs)


def test_crf_is_found_below_wrappers() -> None:
    model = model_of(crf=True)
    assert crf_of(model) is crf_of(Engine(model)) is model.crf
    task = task_of(model, crf=True)
    batch = task.collate([encoded(crf=True)], CPU)
    assert task.loss(Engine(model), batch)["tags"].equal(task.loss(model, batch)["tags"])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks for it
def test_lora_trains_the_crf_and_the_head_beside_it() -> None:
    from peft import LoraConfig, get_peft_model

    model = model_of(crf=True)
    task = task_of(model, crf=True)
    batch = task.collate([encoded(crf=True)], CPU)
    before = task.loss(model, batch)["tags"].item()
    config = LoraConfig(
        task_type="TOKEN_CLS", r=2, target_modules=["query", "value"], modules_to_save=["classifier", "crf"]
    )
    adapted = get_peft_model(model, config)
    task = task_of(adapted, crf=True)
    assert task.loss(adapted, batch)["tags"].item() == pytest.approx(before, abs=1e-4)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    kinds = ("lora_", "classifier.modules_to_save", "crf.modules_to_save")
    assert all(any(kind in name for name in trained) for kind in kinds)
    assert all(any(kind in name for kind in kinds) for name in trained)
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.Adam(trained.values(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        task.loss(Engine(adapted), batch)["tags"].backward()
        optimizer.step()
    assert task.loss(adapted, batch)["tags"].item() < 0.8 * before
    assert all(not torch.equal(parameter, start[name]) for name, parameter in trained.items())
    assert isinstance(adapted.base_model.model.crf.original_module, CRF)
    adapted.zero_grad()
    empty = task.loss(adapted, task.collate([[]], CPU))["tags"]
    empty.backward()
    assert empty.item() == 0.0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trained.values())


# --- what a user sees


def test_entities_are_those_that_are_scored() -> None:
    """Of seqeval, with which `metrics.tags` counts."""
    import seqeval.metrics.sequence_labeling as conll
    from seqeval.scheme import BILOU, IOBES, Entities

    generator = random.Random(1)
    for prefixes, form in (("BI", None), ("BIES", IOBES), ("BILU", BILOU)):
        labels = ["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("X", "Y"))]
        for _ in range(400):
            tags = [generator.choice(labels) for _ in range(generator.randint(1, 8))]
            found = list(entities(tags, whole=form is not None))
            if form is None:
                expected = [(kind, begin, last + 1) for kind, begin, last in conll.get_entities(tags)]
            else:
                expected = [(one.tag, one.start, one.end) for one in Entities([tags], form).entities[0]]
            assert found == expected, tags


def test_answers_name_tags_and_entities() -> None:
    task = task_of(model_of())
    outcome = {"tags": [2, 4, 0, 3], "scores": [0.9, 0.8, 0.7, 0.6], "words": ["Ada", "Lovelace", "in", "London"]}
    assert task.answer(outcome) == {
        "tags": ["B-PER", "I-PER", "O", "I-LOC"],
        "scores": [0.9, 0.8, 0.7, 0.6],
        "words": ["Ada", "Lovelace", "in", "London"],
        "entities": [
            {"type": "PER", "start": 0, "end": 2, "text": "Ada Lovelace"},
            {"type": "LOC", "start": 3, "end": 4, "text": "London"},
        ],
    }
    assert "entities" not in task_of(model_of(), ("NOUN", "VERB", "X", "Y", "Z")).answer(outcome)


def test_a_score_is_of_names() -> None:
    task = task_of(model_of())
    perfect = {"tags": [2, 4, 0], "gold": [2, 4, 0]}
    wrong = {"tags": [0, 1], "gold": [0, 2]}
    scores = task.score([perfect, wrong]).scores
    assert (scores["f1"], scores["accuracy"]) == (0.5, 0.8)
    assert task.score([]).scores == {}


def test_kind_makes_what_the_settings_say() -> None:
    setting = cast(
        Any,
        SimpleNamespace(
            recipe=SimpleNamespace(data=SimpleNamespace(row_tokens=32, overlong=None)),
            labels=LABELS,
            processor=tokenizer_of,
        ),
    )
    spec = token_classification.spec(TokenClassification(type="token-classification", crf=True), {})
    assert spec.model.head(LABELS)["id2label"] == dict(enumerate(LABELS))
    made = spec.encoder(setting)
    assert (made.labels, made.row_tokens, made.overlong, made.crf) == (LABELS, 32, "split", True)
    model = model_of()
    spec.model.extend(model, LABELS)
    assert model.crf.transitions.shape == (5, 5)
    assert spec.build(setting, model).loss(model, spec.build(setting, model).collate([[]], CPU))["tags"].item() == 0.0
    plain = model_of()
    token_classification.spec(TokenClassification(type="token-classification"), {}).model.extend(plain, LABELS)
    assert not hasattr(plain, "crf")


# --- schemes ----------------------------------------------------------------------------------------------------------

BMES = ("O", "B-PER", "M-PER", "E-PER", "S-PER")


def tagging(labels: Sequence[str], crf: bool = False, scheme: str = "auto") -> Tagging:
    settings = TokenClassification.model_validate({"type": "token-classification", "crf": crf, "scheme": scheme})
    meanings = token_classification.meanings_of(tuple(labels), settings)
    return Tagging(tuple(labels), crf, Inputs(model_of(labels, crf), tokenizer_of()), meanings)


@pytest.mark.parametrize(
    "labels",
    [BMES, ("O", "B_PER", "I_PER", "E_PER", "S_PER"), ("O", "PER-B", "PER-I", "PER-L", "PER-U"), ("o", *"bies")],
)
def test_entities_are_scored_in_every_scheme(labels: Sequence[str]) -> None:
    task, gold = tagging(labels), [0, 1, 2, 3, 0, 4, 0, 0]
    nothing, half = [0] * 8, [0, 0, 0, 0, 0, 4, 0, 0]
    assert task.score([{"gold": gold, "tags": nothing}]).scores["f1"] == 0.0
    assert task.score([{"gold": gold, "tags": half}]).scores["recall"] == 0.5
    assert task.score([{"gold": gold, "tags": gold}]).scores["f1"] == 1.0
    outcome = {"tags": gold, "scores": [1.0] * 8, "words": [*"abcdefgh"]}
    found = task.answer(outcome)
    assert [(one["start"], one["end"]) for one in found["entities"]] == [(1, 4), (5, 6)]
    assert found["tags"] == [labels[tag] for tag in gold]  # as the corpus writes them


def test_words_are_scored_where_the_recipe_wants_it() -> None:
    task = tagging(BMES, scheme="none")
    assert task.score([{"gold": [0, 1, 3], "tags": [0, 0, 0]}]).scores["f1"] == pytest.approx(1 / 3)
    assert "entities" not in task.answer({"tags": [0], "scores": [1.0], "words": ["a"]})


@pytest.mark.parametrize("labels", [BMES, ("O", "B_PER", "I_PER"), ("o", "b-per", "i-per")])
def test_a_crf_keeps_to_every_scheme(labels: Sequence[str]) -> None:
    task = tagging(labels, crf=True)
    allowed = task._allowed
    assert allowed is not None
    begins, goes_on = labels.index(labels[1]), labels.index(labels[2])
    assert not allowed.start[goes_on]
    assert allowed.transitions[begins, goes_on]
    assert not allowed.transitions[0, goes_on]


def test_a_tag_of_no_scheme_is_named_where_it_stands(tmp_path: Path) -> None:
    lines = ["a B-PER", "b I-PER", "", "c B-LOC", "d PERSON", "e I-LOC", "f O"]
    (tmp_path / "x.conll").write_text("\n".join(lines) + "\n")
    for settings, refused in (({}, True), ({"scheme": "none"}, False), ({"scheme": "IOB"}, True)):
        whole = recipe(task={"type": "token-classification", **settings}, data={"train": str(tmp_path / "x.conll")})
        if refused:
            with pytest.raises(UserError, match=r"x\.conll:4: tag 'PERSON' is not of (the |task\.)scheme"):
                label_sets.find(whole.parts())
        else:
            assert "PERSON" in label_sets.find(whole.parts())["label"]


def test_the_log_says_which_scheme_is_used() -> None:
    settings = TokenClassification(type="token-classification")
    told = token_classification.describe_scheme(BMES, settings)
    assert told == "tags: BMES, as in B-PER (task.scheme); scores are of entities"
    assert "each word" in token_classification.describe_scheme(("NN", "VB"), settings)
