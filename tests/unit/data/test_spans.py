"""Spans in every form that tools write, and what is said about those that cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from distft.data.class_names import ClassNumber
from distft.data.records import Record
from distft.data.spans import Span, has_spans, is_left_out, marked_text, spans_of
from distft.errors import UserError

TEXT = "Anna lives in New York."
ANNA, YORK = Span(0, 4, "PER"), Span(14, 22, "LOC")


def record(spans: Any, name: str = "spans", text: str = TEXT, **more: Any) -> Record:
    return Record("a.jsonl:3", {"text": text, name: spans, **more})


def studio(*annotations: dict[str, Any], **data: Any) -> Record:
    return Record("export.json[0]", {"id": 1, "data": data or {"text": TEXT}, "annotations": list(annotations)})


def marked(start: Any, end: int, *labels: str, **more: Any) -> dict[str, Any]:
    """A result of Label Studio."""
    value = {"start": start, "end": end, "text": TEXT[start:end], "labels": list(labels)}
    return {"from_name": "label", "to_name": "text", "type": "labels", "value": value, **more}


FORMS = {
    "objects": record([{"start": 0, "end": 4, "label": "PER"}, {"start": 14, "end": 22, "type": "LOC"}]),
    "entities": record(
        [
            {"id": 7, "label": "PER", "start_offset": 0, "end_offset": 4},  # doccano
            {"start_idx": 14, "end_idx": 22, "type": "LOC", "entity": "New York"},
        ],
        "entities",
    ),
    "labels": record([{"start": 0, "end": 4, "labels": ["PER"]}, {"begin": 14, "end": 22, "tag": "LOC"}], "label"),
    "length": record(
        [
            {"offset": 0, "length": 4, "category": "PER", "text": "Anna", "confidenceScore": 0.9},
            {"BeginOffset": 14, "EndOffset": 22, "Type": "LOC", "Text": "New York", "Score": 1},
        ],
        "entities",
    ),
    "doccano": record([[14, 22, "LOC"], [0, 4, "PER"]], "label"),
    "old doccano": record([[14, 22, "LOC"], [0, 4, "PER"]], "labels"),
    "pipelines of transformers": record(
        [
            {"entity_group": "PER", "score": 0.9, "word": "anna", "start": 0, "end": 4},
            {"entity_group": "LOC", "score": 0.9, "word": "New  York", "start": 14, "end": 22},
        ],
        "entities",
    ),
    "Prodigy": record(
        [
            {"start": 0, "end": 4, "token_start": 0, "token_end": 0, "label": "PER"},
            {"start": 14, "end": 22, "token_start": 3, "token_end": 4, "label": "LOC"},
        ],
        tokens=[{"text": "Anna", "start": 0, "end": 4, "id": 0}],
        answer="accept",
        _input_hash=-5,
    ),
    "documents of spaCy": record(
        [{"start": 0, "end": 4, "label": "PER"}, {"start": 14, "end": 22, "label": "LOC"}],
        "ents",
        tokens=[{"id": 0, "start": 0, "end": 4}],
    ),
    "CLUE": record({"PER": {"Anna": [[0, 3]]}, "LOC": {"New York": [[14, 21]]}, "ORG": None}, "label"),
    "Label Studio": studio(
        {
            "result": [
                marked(14, 22, "LOC"),
                {"type": "choices", "value": {"choices": ["news"]}},
                marked(0, 4, "PER"),
                {"type": "relation", "from_id": "a", "to_id": "b"},
            ]
        }
    ),
    "less of Label Studio": record(
        [{"start": 0, "end": 4, "text": "Anna", "labels": ["PER"]}, {"start": 14, "end": 22, "labels": ["LOC"]}],
        "label",
    ),
    "Dataturks": Record(
        "a.json:1",
        {
            "content": TEXT,
            "annotation": [
                {"label": ["PER"], "points": [{"start": 0, "end": 3, "text": "Anna"}]},
                {"label": ["LOC"], "points": [{"start": 14, "end": 21, "text": "New York"}]},
            ],
        },
    ),
    "BigBio": record(
        [
            {"id": "1", "offsets": [[0, 4]], "text": ["Anna"], "type": "PER"},
            {"id": "2", "offsets": [[14, 22]], "text": ["New York"], "type": "LOC"},
        ],
        "entities",
    ),
    "lists of columns": record({"start": [0, 14], "end": [4, 22], "label": ["PER", "LOC"]}),
    "columns without a value": record(
        [
            {"start": 0, "end": 4, "label": "PER", "text": None, "type": None},
            {"start": 14.0, "end": 22.0, "label": None, "type": "LOC", "text": "New York"},
        ]
    ),
    "JSON in a table": record('[{"start": 0, "end": 4, "label": "PER"}, [14, 22, "LOC"]]'),
    "numbers with names": record([[0, 4, ClassNumber(1, "PER")], [14, 22, ClassNumber(2, "LOC")]]),
    "one of them twice": record([[0, 4, "PER"], [0, 4, "PER"], [14, 22, "LOC"]]),
    "blanks around": record([[0, 5, "PER"], [13, 22, "LOC"]]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str) -> None:
    one = FORMS[form]
    fields = {"text": "content", "spans": "annotation"} if form == "Dataturks" else {}
    assert has_spans(one, fields)
    assert not is_left_out(one)
    assert marked_text(one, fields) == TEXT
    assert spans_of(one, fields) == [ANNA, YORK]


def test_none_is_none() -> None:
    for one in (record([]), record({}, "label"), studio({"result": []}), record("[]")):
        assert has_spans(one, {})
        assert spans_of(one, {}) == []


def test_spans_that_touch_are_two() -> None:
    assert spans_of(record([[4, 8, "A"], [0, 4, "A"]], text="abcdefgh"), {}) == [Span(0, 4, "A"), Span(4, 8, "A")]


def test_columns_are_named_by_the_recipe() -> None:
    one = Record("x", {"body": TEXT, "entities": [], "gold": [[0, 4, "PER"]], "tags": ["news"]})
    assert not has_spans(one, {"text": "body"})  # tags have it
    fields = {"text": "body", "spans": "gold"}
    assert has_spans(one, fields)
    assert spans_of(one, fields) == [ANNA]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tokens": ["a"], "tags": ["O"], "text": "a", "spans": []}, {}),
        ({"tokens": ["a"], "ner": ["O"], "text": "a", "labels": []}, {"tags": "ner"}),
        ({"tokens": ["a"], "text": "a", "spans": []}, {}),
        ({"text": "a"}, {}),
        ({"tokens": ["a"], "labels": [0]}, {}),
    ],
)
def test_other_forms_are_others(fields: dict[str, Any], named: dict[str, str]) -> None:
    assert not has_spans(Record("x", fields), named)


def test_what_was_not_accepted_is_left_out() -> None:
    rejected = [record([], answer=answer) for answer in ("reject", "ignore")]
    cancelled = [studio(), studio({"was_cancelled": True, "result": [marked(0, 4, "PER")]})]
    assert all(map(is_left_out, (*rejected, *cancelled)))
    kept = studio({"was_cancelled": True, "result": []}, {"was_cancelled": False, "result": [marked(0, 4, "PER")]})
    assert not is_left_out(kept)
    assert spans_of(kept, {}) == [ANNA]


def test_several_annotations_of_one_text() -> None:
    one, other = {"result": [marked(0, 4, "PER", id="a")]}, {"result": [marked(14, 22, "LOC")]}
    assert spans_of(studio(one, {"result": [marked(0, 4, "PER", id="b")]}), {}) == [ANNA]
    assert spans_of(studio(one, {**other, "ground_truth": True}), {}) == [YORK]
    with pytest.raises(UserError, match=r"export.json\[0\]: annotations has 2 annotations that differ; keep one, or"):
        spans_of(studio(one, other), {})


def test_the_text_of_label_studio_may_have_any_name() -> None:
    assert marked_text(studio(body=TEXT, n=1), {}) == TEXT
    assert marked_text(studio(body="x", title=TEXT), {"text": "title"}) == TEXT
    with pytest.raises(
        UserError, match=r"data has no 'text', and 2 other texts; name the right one in data.fields: {te"
    ):
        marked_text(studio(body="x", title=TEXT), {})


@pytest.mark.parametrize(
    ("text", "span", "message"),
    [
        ("Anna, here", (0, 3), "the end seems to be inside the span: add 1 to it"),
        ("Anna, here", (0, 5), "the end seems to be too far by 1: subtract 1"),
        ("Müll für Anna hier", (11, 15), "the offsets seem to count bytes of UTF-8"),
        ("Hm 😀😀 for Anna here", (12, 16), "the offsets seem to count UTF-16, as in JavaScript and Java"),
        ("for Anna, here", (5, 9), "the offsets seem to count from 1: subtract 1 from both"),
        ("for Anna, here", (5, 8), "the offsets seem to count from 1, the end inside: subtract 1 from the start"),
        ("for\nfew\nAnna here", (10, 14), "the offsets seem to count two characters for the end of a line"),
        ("here is Bob and Anna", (8, 11), "correct one of the two"),
    ],
)
def test_words_that_are_elsewhere_tell_what_was_counted(text: str, span: tuple[int, int], message: str) -> None:
    start, end = span
    one = record([{"start": start, "end": end, "label": "PER", "text": "Anna"}], text=text)
    with pytest.raises(UserError) as caught:
        spans_of(one, {})
    assert str(caught.value).startswith(
        f"a.jsonl:3: spans[0] is said to be 'Anna', but [{start}, {end}] of the text is {text[start:end]!r}; {message}"
    )


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (None, r"spans is null; write \[\] if nothing is marked, or leave the record out"),
        ("Anna", "spans must be a list of spans, or one written in JSON, not 'Anna'"),
        (3, "spans must be a list of spans, not '3'"),
        (["Anna"], r"spans\[0\] must be an object with start, end and label, or \[start, end, label\], not 'Anna'"),
        ([[0, 4]], r"spans\[0\] must be an object"),
        ([{"label": "PER"}], r"spans\[0\] must have whole numbers for start and end, not None and None"),
        ([["0", 4, "PER"]], r"spans\[0\] must have whole numbers for start and end, not '0' and 4"),
        ([[0.5, 4, "PER"]], "must have whole numbers for start and end, not 0.5 and 4"),
        ([[False, True, "PER"]], "must have whole numbers for start and end, not False and True"),
        ([[0, float("nan"), "PER"]], "must have whole numbers for start and end, not 0 and nan"),
        ([[0, 4, "PER"], {"start": 14, "end": 22}], r"spans\[1\] must have the name of a kind as its label, not None"),
        ([[0, 4, "  "]], r"spans\[0\] must have the name of a kind as its label, not '  '"),
        ([{"start": 0, "end": 4, "labels": []}], "must have the name of a kind as its label, not None"),
        ([{"start": 0, "end": 4, "labels": ["A", "B"]}], r"spans\[0\] has 2 labels, A, B; a word has one tag"),
        ([[4, 4, "PER"]], r"spans\[0\]: \[4, 4\] is no span of a text; start must be at least 0 and less than end"),
        ([[5, 4, "PER"]], r"\[5, 4\] is no span"),
        ([[-4, 4, "PER"]], r"\[-4, 4\] is no span"),
        ([[4, 5, "PER"]], r"spans\[0\]: \[4, 5\] holds nothing but white space; leave it out"),
        ([[14, 24, "LOC"]], r"spans\[0\]: \[14, 24\] is beyond the text, which has 23 characters$"),
        ([[14, 22, "B"], [18, 22, "C"]], r"B 'New York' \[14, 22\] and C 'York' \[18, 22\] overlap, and a word"),
        ([[0, 10, "A"], [5, 13, "B"]], r"A 'Anna lives' \[0, 10\] and B 'lives in' \[5, 13\] overlap"),
        ([[0, 4, "A"], [0, 4, "B"]], r"A 'Anna' \[0, 4\] and B 'Anna' \[0, 4\] overlap"),
        ([{"offsets": [[0, 4], [14, 22]], "type": "X"}], r"spans\[0\] must be one pair of numbers, begin and end"),
        ({"PER": {"Anna": [0, 3]}}, r"spans.PER.Anna must be one pair of numbers, begin and end, not '0'"),
        ({"PER": {"Anna": 3}}, r"spans.PER.Anna must be one pair of numbers"),
        ({"PER": [[0, 4]]}, r"spans.PER must be {words: \[\[first, last\]\]}, or spans a list of spans; it is"),
        ({"PER": {"Anna": [[0, 4]]}}, r"spans.PER.Anna is said to be 'Anna', but \[0, 5\]"),
        ({"start": [0, 5], "end": [4]}, "spans has lists of different lengths; give each span"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(spans: Any, message: str) -> None:
    text = TEXT.replace(" ", "x", 1) if spans == {"PER": {"Anna": [[0, 4]]}} else TEXT
    with pytest.raises(UserError, match=rf"^a\.jsonl:3: .*{message}"):
        spans_of(record(spans, text=text), {})


def test_a_text_that_is_too_short_tells_what_may_have_been_counted() -> None:
    with pytest.raises(UserError, match="which has 9 characters, but 13 bytes of UTF-8: offsets count characters"):
        spans_of(record([[8, 12, "PER"]], text="äöü ßAnna"), {})
    with pytest.raises(UserError, match="which has 6 characters, but 8 units of UTF-16: offsets count characters"):
        spans_of(record([[4, 8, "PER"]], text="😀😀Anna"), {})
