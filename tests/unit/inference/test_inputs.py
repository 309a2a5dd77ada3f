"""How a file is read that a trained run is asked about."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from distft.data import sources
from distft.errors import UserError
from distft.inference.inputs import check_decoding, source_like, trained_on_texts
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.tasks.shared.generation import Decoding

CONLL = "Anna B-PER\nlives O\n\nBremen B-LOC\n"
PLAIN = ["Anna lives in Bremen .", "Peter lives in Hamburg ."]
TAGS = {"type": "token-classification"}


def recipe(task: dict[str, Any], **data: Any) -> Recipe:
    given = {"train": "train.txt", **data}
    return Recipe.model_validate({"task": task, "model": {"path": "m"}, "data": given, "train": {"steps": 1}})


def read(
    tmp_path: Path, name: str, text: str, wanted: Recipe, answered: bool = False, told: int | None = None
) -> list[dict[str, Any]]:
    """The first `told` records, or all."""
    run = RunDir(tmp_path)
    run.labels.write_text(json.dumps({"label": ["O", "B-PER", "B-LOC"]}))
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    records = sources.read(source_like(run, wanted, path, None, answered))
    return [record.fields for record in islice(records, told)]


@pytest.mark.parametrize("name", ["new.txt", "new.txt.gz"])
def test_texts_are_texts_though_the_run_was_trained_on_columns(tmp_path: Path, name: str) -> None:
    columns = recipe(TAGS, format="conll")
    assert read(tmp_path, name, "\n".join(PLAIN), columns) == [{"text": text} for text in PLAIN]
    assert read(tmp_path, name, CONLL, columns)[0] == {"tokens": ["Anna", "lives"], "tags": ["B-PER", "O"]}
    assert read(tmp_path, name, CONLL + "\nIBM B-NEW\nbroken\n", columns, told=2)[1]["tags"] == ["B-LOC"]
    assert read(tmp_path, name, "Anna _\nlives _\n", columns) == [{"tokens": ["Anna", "lives"], "tags": ["_", "_"]}]
    two = recipe({"type": "sequence-classification"}, delimiter="@", columns=["text", "label"])
    assert read(tmp_path, name, "\n".join(PLAIN), two) == [{"text": text} for text in PLAIN]
    assert read(tmp_path, name, "good@positive\n", two) == [{"text": "good", "label": "positive"}]


def test_what_is_evaluated_has_the_form_of_the_training_data(tmp_path: Path) -> None:
    columns = recipe(TAGS, format="conll")
    assert read(tmp_path, "new.txt", "Anna X\n", columns, answered=True) == [{"tokens": ["Anna"], "tags": ["X"]}]


@pytest.mark.parametrize("name", ["new.txt", "new.txt.gz"])
def test_a_text_goes_into_the_column_that_the_task_reads(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, name, "a\nb\n", recipe({"type": "seq2seq-lm"})) == [{"source": "a"}, {"source": "b"}]


@pytest.mark.parametrize(
    ("first", "wanted"), [({"text": "a"}, True), ({"prompt": "a", "completion": "b"}, False), (None, False)]
)
def test_a_language_model_of_plain_texts_is_told_by_its_data(
    tmp_path: Path, first: dict[str, str] | None, wanted: bool
) -> None:
    if first is not None:
        (tmp_path / "d.jsonl").write_text(json.dumps(first))
    assert trained_on_texts(recipe({"type": "causal-lm"}, train=str(tmp_path / "d.jsonl"))) is wanted


@pytest.mark.parametrize(("how", "wanted"), [({}, False), ({"bad_records": "skip"}, True)])
def test_by_the_first_record_that_is_not_left_out(tmp_path: Path, how: dict[str, str], wanted: bool) -> None:
    (tmp_path / "d.jsonl").write_text('{broken\n{"text": 3}\n{"text": "a"}\n')
    assert trained_on_texts(recipe({"type": "causal-lm"}, train=str(tmp_path / "d.jsonl"), **how)) is wanted


def test_what_is_evaluated_may_have_bad_records_where_the_training_data_may(tmp_path: Path) -> None:
    for data in ({"train": "train.txt"}, {"train": "new.csv", "columns": ["text", "label"]}):
        lenient = recipe({"type": "sequence-classification"}, **data, bad_records="skip", bad_budget=0.2)
        assert source_like(RunDir(tmp_path), lenient, tmp_path / "new.csv", None, True).bad_budget == 0.2


def test_a_choice_of_words_is_for_tasks_that_make_one() -> None:
    check_decoding(recipe({"type": "dpo"}), Decoding(max_tokens=3))
    check_decoding(recipe({"type": "seq2seq-lm"}), Decoding())
    with pytest.raises(UserError, match=r"seq2seq-lm uses neither; set task.beams and task.longest_target"):
        check_decoding(recipe({"type": "seq2seq-lm"}), Decoding(max_tokens=3))
    with pytest.raises(UserError, match=r"--temperature: task.type token-classification uses neither$"):
        check_decoding(recipe(TAGS), Decoding(temperature=0.5))
