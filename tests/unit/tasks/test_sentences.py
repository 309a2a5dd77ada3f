"""Records as sentences: tags of words from spans, and back to spans of the text."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from distft.data.records import Document, Encoded, Record
from distft.errors import UserError
from distft.recipe.tasks import TokenClassification
from distft.tasks import labels as label_sets
from distft.tasks.shared.padding import SPLIT, unpack_json
from distft.tasks.token_classification.encoder import WITHOUT_WORDS, TaggingEncoder
from distft.tasks.token_classification.sentences import INSIDE, UNACCEPTED, read, tag_names
from distft.tasks.token_classification.task import spec
from distft.training.preview import facts
from tests.unit.recipes import recipe
from tests.unit.tasks.test_token_classification import LABELS, model_of, task_of, tokenizer_of

TEXT = "Ada Lovelace-King, in  London."
SPANS = [{"start": 0, "end": 12, "label": "PER"}, {"start": 23, "end": 29, "label": "LOC"}]


def record(text: str = TEXT, spans: Any = SPANS, **more: Any) -> Record:
    return Record("a.jsonl:3", {"text": text, "spans": spans, **more})


def encoder(row: int = 64, name: str = "letters", words: Any = "signs", labels: Any = LABELS, **of: str) -> Any:
    return TaggingEncoder(tokenizer_of(name), False, tuple(labels), of, row, "split", text_words=words)


def only(encoded: Encoded) -> Document:
    [document] = encoded.documents
    return document


def tagged(one: Record) -> list[tuple[str, str]]:
    sentence = read(one, {})
    return list(zip(sentence.texts, sentence.tags or [], strict=True))


def test_the_words_of_a_span_have_its_tags() -> None:
    assert tagged(record()) == [
        ("Ada", "B-PER"), ("Lovelace", "I-PER"), ("-", "O"), ("King", "O"), (",", "O"), ("in", "O"),
        ("London", "B-LOC"), (".", "O"),
    ]  # fmt: skip
    assert read(record(), {}).notes == {}


def test_what_is_not_marked_is_outside() -> None:
    assert tagged(record("a b", [])) == [("a", "O"), ("b", "O")]


def test_spans_that_touch_begin_anew() -> None:
    assert tagged(record("彭小军北京", [[0, 3, "PER"], [3, 5, "LOC"]])) == [
        ("彭", "B-PER"), ("小", "I-PER"), ("军", "I-PER"), ("北", "B-LOC"), ("京", "I-LOC")
    ]  # fmt: skip


def test_a_span_divides_a_word_and_is_counted() -> None:
    one = record("Die Bremenfahrt am Rhein", [[4, 10, "LOC"], [19, 24, "LOC"]])
    assert [pair for pair in tagged(one) if pair[1] != "O"] == [("Bremen", "B-LOC"), ("Rhein", "B-LOC")]
    assert [word for word, _ in tagged(one)] == ["Die", "Bremen", "fahrt", "am", "Rhein"]
    assert encoder().encode(one).notes == {INSIDE: 1}
    inner = record("unbremenlich", [[2, 4, "A"], [4, 8, "B"]])
    assert read(inner, {}).notes == {INSIDE: 2}  # spans, not places


def test_words_do_not_depend_on_spans_but_for_those_inside_words() -> None:
    marked, plain = only(encoder().encode(record())), only(encoder().encode(record(), answered=False))
    for name in ("tokens", "types", "starts", "edges", "words"):
        assert np.array_equal(marked[name], plain[name]), name
    assert [LABELS[tag] for tag in marked["tags"]] == ["B-PER", "I-PER", *["O"] * 4, "B-LOC", "O"]
    assert len(plain["tags"]) == 0


def test_byte_level_tokenizers_see_the_blanks_of_the_text() -> None:
    text = "the cat, the(old) cat"
    document = only(encoder(name="roberta").encode(record(text, [])))
    assert document["tokens"].tolist() == tokenizer_of("roberta")(f" {text}")["input_ids"]


def test_all_tags_of_a_kind_are_known_from_the_first_span() -> None:
    assert tag_names(record("a", [[0, 1, "X"]]), {}) == ["O", "B-X", "I-X"]
    assert tag_names(record("a", []), {}) == ["O"]
    assert tag_names(record("a", [[0, 1, "X"]], answer="reject"), {}) == []


def test_what_nobody_accepted_is_dropped_and_counted() -> None:
    assert encoder().encode(record(answer="ignore")) == Encoded([], {UNACCEPTED: 1})
    assert encoder().encode(Record("x", {"data": {"text": "a"}, "annotations": []})) == Encoded([], {UNACCEPTED: 1})
    assert len(encoder().encode(record(answer="ignore"), answered=False).documents) == 1
    assert encoder().encode(record(" ", [])) == Encoded([], {WITHOUT_WORDS: 1})


@pytest.mark.parametrize(
    ("one", "of", "message"),
    [
        (record(spans=None), {}, "a.jsonl:3: spans is null; write"),
        (Record("a.jsonl:3", {"text": "a"}), {}, r"a.jsonl:3 has a text, but no spans in it; write spans: \[\] if it"),
        (
            Record("a.jsonl:3", {"text": "a"}),
            {"spans": "gold"},
            r"a.jsonl:3 has no column 'gold' \(data.fields.spans\)",
        ),
        (record("a", [[0, 1, "ORG"]]), {}, "tag 'B-ORG' is not one of this run's: O, B-LOC"),
    ],
)
def test_what_is_missing_is_said(one: Record, of: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encoder(**of).encode(one)
    if "ORG" not in message:
        with pytest.raises(UserError, match=message):  # they are looked for first
            tag_names(one, of)


def test_spans_need_words_and_tags_of_their_kind() -> None:
    with pytest.raises(UserError, match=r"a.jsonl:3 has spans, but task.words is spaces; set it to signs, or"):
        encoder(words="spaces").encode(record())
    with pytest.raises(UserError, match=r"has spans, but task.words is spaces"):
        tag_names(record(), {}, "spaces")
    with pytest.raises(UserError, match="has spans, which are tagged B- and I-, but this run's tags are BIOES"):
        encoder(labels=("O", *(f"{mark}-PER" for mark in "BIES"))).encode(record(spans=SPANS[:1]))


# --- predictions


def answer(one: Record, tags: list[int], **of: Any) -> Any:
    words = unpack_json(only(encoder(**of).encode(one, answered=False))["words"])
    return task_of(model_of()).answer({"tags": tags, "scores": [0.5] * len(tags), "words": words})


@pytest.mark.parametrize(
    "one",
    [
        Record("x", {"text": TEXT}),
        record(),
        record(tokens=[{"text": "Ada", "id": 0}]),  # of Prodigy
        Record("x", {"data": {"body": TEXT}}),
    ],
)
def test_entities_of_a_text_are_spans_of_it(one: Record) -> None:
    found = answer(one, [2, 4, 0, 0, 0, 0, 1, 0])
    assert found["words"] == ["Ada", "Lovelace", "-", "King", ",", "in", "London", "."]
    assert found["entities"] == [
        {"type": "PER", "start": 0, "end": 12, "text": "Ada Lovelace"},
        {"type": "LOC", "start": 23, "end": 29, "text": "London"},
    ]
    across = answer(one, [0, 0, 0, 0, 0, 1, 3, 0])
    assert across["entities"] == [{"type": "LOC", "start": 19, "end": 29, "text": "in  London"}]


def test_entities_of_words_count_words() -> None:
    for one, of in (
        (Record("x", {"tokens": ["in", "London."]}), {}),
        (Record("x", {"text": "in London."}), {"words": "spaces"}),
    ):
        found = answer(one, [0, 1], **of)
        assert found["entities"] == [{"type": "LOC", "start": 1, "end": 2, "text": "London."}]
        assert found["words"] == ["in", "London."]


def test_a_text_without_words_has_no_entities() -> None:
    assert answer(Record("x", {"text": " "}), []) == {"tags": [], "scores": [], "words": [], "entities": []}


def test_what_is_marked_comes_back_from_a_text_longer_than_a_row() -> None:
    """Perfect tags give the spans that were read, whatever was divided."""
    generator = random.Random(3)
    for _ in range(10):
        words = ["".join(generator.choices("abcd", k=generator.randint(1, 5))) for _ in range(12)]
        text = "".join(word + generator.choice([" ", "  ", ", ", "-", "\n"]) for word in words)
        cuts = sorted(generator.sample(range(len(text)), 6))
        spans = [(b, e, generator.choice(["PER", "LOC"])) for b, e in zip(cuts[::2], cuts[1::2], strict=True)]
        spans = [(b, e, kind) for b, e, kind in spans if text[b:e].strip() == text[b:e]]
        one = record(text, list(map(list, spans)))
        encoded = encoder(row=12).encode(one)
        assert encoded.notes[SPLIT] == 1
        model = model_of()
        task = task_of(model)
        outcomes = task.predict(model, task.collate([encoded.documents], torch.device("cpu")))
        joined = task.join(outcomes)
        found = task.answer({**joined, "tags": joined["gold"]})["entities"]
        assert [(each["start"], each["end"], each["type"]) for each in found] == spans
        assert all(each["text"] == text[each["start"] : each["end"]] for each in found)


# --- beside the encoder


def test_a_tokenizer_is_trained_on_the_words() -> None:
    made = spec(TokenClassification(type="token-classification"), {})
    assert list(made.texts(record("北京 ok."))) == ["北 京 ok ."]


def test_labels_are_found_in_spans(tmp_path: Any) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a b", "label": [[0, 1, "X"]]}\n{"text": "c", "label": []}\n')
    whole = recipe(task={"type": "token-classification"}, data={"train": str(tmp_path / "a.jsonl")})
    assert label_sets.find(whole.parts()) == {"label": ["O", "B-X", "I-X"]}


def test_words_and_tags_are_shown() -> None:
    document = only(encoder().encode(record("ab, c", [[4, 5, "PER"]])))
    assert list(facts(document, tokenizer_of(), LABELS)) == [("tags", "ab/O ,/O c/B-PER")]
