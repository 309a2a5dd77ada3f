"""Labels are called by the names that their data set keeps, and one meaning has one text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from distft.data.class_names import LabelText, label_text, of_features, of_parquet, place_of
from distft.data.sources import Source, read
from distft.data.spans import spans_of
from distft.errors import UserError
from distft.tasks import labels
from distft.tasks.sequence_classification import label_names
from distft.tasks.token_classification.sentences import tag_names
from tests.unit.recipes import recipe

SENTIMENT = datasets.ClassLabel(names=["bad", "good"])
TAGS = datasets.ClassLabel(names=["O", "B-PER", "I-PER"])


def written(folder: Path, form: str, rows: dict[str, list[Any]], features: datasets.Features) -> Source:
    data = datasets.Dataset.from_dict(rows, features=features)
    if form == "folder":
        data.save_to_disk(folder / "data")
        return Source(str(folder / "data"), "train")
    data.to_parquet(folder / "data.parquet")
    return Source(str(folder / "data.parquet"), "train")


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_classes_have_the_names_of_their_data_set(tmp_path: Path, form: str) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": SENTIMENT})
    source = written(tmp_path, form, {"text": ["a", "b"], "label": [1, 0]}, features)
    assert [label_names(record, "single", {}) for record in read(source)] == [["good"], ["bad"]]
    whole = recipe(task={"type": "sequence-classification"}, data={"train": source.spec})
    found = labels.find(whole.parts())
    assert found == {"label": ["bad", "good"]}
    assert copy.deepcopy(found) == found  # as transformers does with its configurations


@pytest.mark.parametrize("form", ["folder", "parquet"])
@pytest.mark.parametrize("many", [datasets.List, datasets.Sequence])
def test_so_do_tags(tmp_path: Path, form: str, many: Any) -> None:
    words = datasets.List(datasets.Value("string"))
    features = datasets.Features({"tokens": words, "tags": many(TAGS)})
    source = written(tmp_path, form, {"tokens": [["a", "b", "c"]], "tags": [[1, 2, 0]]}, features)
    [record] = read(source)
    assert tag_names(record, {}) == ["B-PER", "I-PER", "O"]


@pytest.mark.parametrize("form", ["folder", "parquet"])
@pytest.mark.parametrize("many", [datasets.List, datasets.Sequence])
def test_so_do_the_kinds_of_spans(tmp_path: Path, form: str, many: Any) -> None:
    """`datasets` keeps a `Sequence` of objects as an object of lists."""
    number, text = datasets.Value("int32"), datasets.Value("string")
    span = {"start": number, "end": number, "label": datasets.ClassLabel(names=["PER", "LOC"])}
    features = datasets.Features({"text": text, "spans": many(span)})
    rows = [{"start": 0, "end": 1, "label": 1}, {"start": 2, "end": 3, "label": 0}]
    spans = rows if many is datasets.List else {name: [row[name] for row in rows] for name in span}
    source = written(tmp_path, form, {"text": ["a b"], "spans": [spans]}, features)
    [record] = read(source)
    assert [(one.start, one.kind) for one in spans_of(record, {})] == [(0, "LOC"), (2, "PER")]


def test_so_does_what_earlier_versions_of_datasets_wrote() -> None:
    kind = {"names": ["PER", "LOC"], "_type": "ClassLabel"}
    place = {"dtype": "int32", "_type": "Value"}
    name = of_features({"spans": {"feature": {"start": place, "label": kind}, "_type": "Sequence"}})
    assert name is not None
    for spans in ({"start": [0, 2], "label": [1, 0]}, [{"start": 0, "label": 1}, {"start": 2, "label": 0}]):
        found = name({"spans": spans, "n": 1})["spans"]
        kinds = found["label"] if isinstance(found, dict) else [one["label"] for one in found]
        assert [one.name for one in kinds] == ["LOC", "PER"]
    assert name({"spans": None}) == {"spans": None}
    assert of_features({"spans": {"feature": {"start": place}, "_type": "Sequence"}}) is None


def test_several_labels_and_those_that_are_missing(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.List(SENTIMENT)})
    source = written(tmp_path, "folder", {"text": ["a", "b"], "label": [[0, 1], []]}, features)
    assert [label_names(record, "multi-label", {}) for record in read(source)] == [["bad", "good"], []]
    one = datasets.Features({"text": datasets.Value("string"), "label": SENTIMENT})
    (tmp_path / "one").mkdir()
    [lacking] = read(written(tmp_path / "one", "folder", {"text": ["a"], "label": [-1]}, one))
    with pytest.raises(UserError, match="has no label"):
        label_names(lacking, "single", {})


def test_numbers_are_still_numbers(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": SENTIMENT})
    [record] = read(written(tmp_path, "folder", {"text": ["a"], "label": [1]}, features))
    assert record.fields["label"] == 1
    assert int(record.fields["label"]) + 1 == 2


def test_a_run_that_calls_them_by_number_goes_on() -> None:
    earlier = {"0": 0, "1": 1}
    assert place_of(LabelText("good", "1"), earlier) == 1
    assert place_of(LabelText("good", "1"), {"bad": 0, "good": 1}) == 1
    assert place_of(LabelText("other", "7"), earlier) is None
    assert place_of("1.0", earlier) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        (float("nan"), None),
        (np.float64("nan"), None),
        ("", None),
        (" a ", "a"),
        (0, "0"),
        ("0", "0"),
        (1.0, "1"),
        (True, "True"),
        (2.5, "2.5"),
        ("nan", "nan"),
        (-100, "-100"),
    ],
)
def test_one_meaning_has_one_text(value: Any, text: str | None) -> None:
    assert label_text(value) == text


@pytest.mark.parametrize("value", ["NaN", "null", '""', "-100", "-100.0"])
def test_what_is_no_label_is_refused_with_its_line(tmp_path: Path, value: str) -> None:
    lines = ['{"text": "a", "label": "x"}', f'{{"text": "b", "label": {value}}}', '{"text": "c", "label": "y"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines) + "\n")
    whole = recipe(task={"type": "sequence-classification"}, data={"train": str(tmp_path / "x.jsonl")})
    with pytest.raises(UserError, match=r"x\.jsonl:2"):
        labels.find(whole.parts())


def test_numbers_and_texts_of_numbers_are_the_same_classes(tmp_path: Path) -> None:
    values = ["0", '"0"', "1.0", '"1"', "1"]
    (tmp_path / "x.jsonl").write_text("".join(f'{{"text": "a", "label": {value}}}\n' for value in values))
    whole = recipe(task={"type": "sequence-classification"}, data={"train": str(tmp_path / "x.jsonl")})
    assert labels.find(whole.parts()) == {"label": ["0", "1"]}
    with open(tmp_path / "x.jsonl", "a") as file:
        file.write('{"text": "a", "label": true}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:6: label 'True' stands beside label '0' .*; write one meaning"):
        labels.find(whole.parts())


@pytest.mark.parametrize("tag", [float("nan"), None, -100, True, " "])
def test_what_is_no_tag_is_refused(tag: Any) -> None:
    from distft.data.records import Record

    with pytest.raises(UserError, match=r"^x:1: tags\[1\] must be the name of a tag or its number"):
        tag_names(Record("x:1", {"tokens": ["a", "b"], "tags": ["O", tag]}), {})


@pytest.mark.parametrize("metadata", [None, {}, {b"huggingface": b"{"}, {b"huggingface": b'{"info": 3}'}])
def test_a_file_without_names_is_read_as_it_is(metadata: Any) -> None:
    assert of_parquet(metadata) is None
