"""The labels of a run: all that the data have, or those that the recipe names, and the same ones for ever after."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distft.data.sources import Source
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.recipe.tasks import TaskPart
from distft.tasks import labels

CLASSES = {"type": "sequence-classification"}
SEVERAL = {"type": "sequence-classification", "kind": "multi-label"}
TAGS = {"type": "token-classification"}


def recipe(task: dict[str, Any], **fields: str) -> Recipe:
    data = {} if task["type"] == "multi-task" else {"data": {"train": "given below", "fields": fields}}
    return Recipe.model_validate({"task": task, "model": {"path": "/m"}, **data, "train": {"steps": 1}})


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Callable[[str | None], Source]]:
    """Makes a file of labels, with a text each, and gives where they are read; of several tasks by name."""

    def make(*values: Any, column: str = "label", **parts: list[Any]) -> Callable[[str | None], Source]:
        for name, given in (parts or {"a": list(values)}).items():
            rows = [json.dumps({"text": "x", column: value}) + "\n" for value in given]
            (tmp_path / f"{name}.jsonl").write_text("".join(rows))
        return lambda part: Source(str(tmp_path / f"{part or 'a'}.jsonl"))

    return make


def never(part: str | None) -> Source:
    return Source("/the data are read again.jsonl")


def nowhere(part: str | None) -> Source:
    return Source("/nowhere.jsonl")  # an error where it is read


def parts_of(wanted: Recipe, source_of: Callable[[str | None], Source]) -> list[TaskPart]:
    return [
        replace(part, train=(part.train[0].model_copy(update={"path": str(source_of(part.name).spec)}),))
        for part in wanted.parts()
    ]


def find(wanted: Recipe, source_of: Callable[[str | None], Source]) -> dict[str, list[str]]:
    return labels.find(parts_of(wanted, source_of))


def settle(path: Path, wanted: Recipe, source_of: Callable[[str | None], Source], begun: bool) -> dict[str, list[str]]:
    return labels.settle(path, parts_of(wanted, source_of), begun)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", "b", "c"], ["a", "b", "c"]),
        ([1, 10, 2, 1], ["1", "2", "10"]),  # by value
        (["10", "9.5", "-1"], ["-1", "9.5", "10"]),
        ([True, False], ["False", "True"]),
        (["b", "2", "10", "a"], ["2", "10", "a", "b"]),
        ([" yes ", "no", "yes"], ["no", "yes"]),
        (["é", "z", "A", "a"], ["A", "a", "z", "é"]),
    ],
)
def test_found_in_the_data_in_an_order_that_does_not_depend_on_theirs(
    data: Any, values: list[Any], expected: list[str]
) -> None:
    for given in (values, values[::-1]):
        assert find(recipe(CLASSES), data(*given)) == {"label": expected}


def test_tags_begin_with_o(data: Any) -> None:
    found = find(recipe(TAGS), data(["NN", "O"], ["A-first", "VB"], column="tags"))
    assert found == {"label": ["O", "A-first", "NN", "VB"]}


def test_any_number_of_labels_a_record(data: Any) -> None:
    expected = {"label": ["a", "b", "c"]}
    assert find(recipe(SEVERAL), data(["c", "a"], [], ["b", "c"])) == expected
    assert find(recipe(SEVERAL), data("c, a", "", "b,c")) == expected
    assert find(recipe(SEVERAL), data('["c", "a"]', None, '["b"]')) == expected


def test_fields_name_the_column(data: Any) -> None:
    made = data("a", "b", column="sentiment")
    assert find(recipe(CLASSES, label="sentiment"), made) == {"label": ["a", "b"]}
    with pytest.raises(UserError, match=r"a\.jsonl:1 has no column 'label' .*; it has text, sentiment"):
        find(recipe(CLASSES), made)


def test_a_task_without_labels_reads_nothing() -> None:
    regression = {"type": "sequence-classification", "kind": "regression"}
    for task in ({"type": "causal-lm"}, {"type": "masked-lm"}, {"type": "dpo"}, regression):
        assert find(recipe(task), nowhere) == {}


def test_of_several_tasks_each_has_its_own(data: Any, tmp_path: Path) -> None:
    tasks = {
        "mood": {"task": CLASSES, "train": "x"},
        "lm": {"task": {"type": "masked-lm"}, "train": "x"},
        "topic": {"task": {**CLASSES, "labels": ["z", "y"]}, "train": "x", "fields": {"label": "label"}},
    }
    several = recipe({"type": "multi-task", "tasks": tasks})
    expected = {"mood": ["a", "b"], "topic": ["z", "y"]}
    assert find(several, data(mood=["b", "a"], topic=["y", "z"], lm=[])) == expected
    assert settle(tmp_path / "labels.json", several, data(mood=["b", "a"], topic=["y", "z"]), False) == expected
    assert settle(tmp_path / "labels.json", several, never, True) == expected
    with pytest.raises(UserError, match=r"topic\.jsonl:2: label 'x' is not in task\.tasks\.topic\.task\.labels"):
        find(several, data(mood=["a", "b"], topic=["y", "x", "z"]))


# --- those that the recipe names --------------------------------------------------------------------------------------


def test_the_order_of_the_recipe_is_kept(data: Any) -> None:
    found = find(recipe({**CLASSES, "labels": ["neutral", "bad", "good"]}), data("good", "bad", "neutral"))
    assert found == {"label": ["neutral", "bad", "good"]}
    one = find(recipe({**SEVERAL, "labels": ["only"]}), data(["only"], []))
    assert one == {"label": ["only"]}


def test_a_class_without_records_is_refused(data: Any) -> None:
    with pytest.raises(UserError, match=r"task\.labels: no record of .*a\.jsonl has label 'bad'; remove that label"):
        find(recipe({**CLASSES, "labels": ["good", "bad", "ugly"]}), data("good", "good", "ugly"))


def test_a_label_that_is_not_named_is_refused_where_it_stands(data: Any) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:3: label 'ugly' is not in task\.labels"):
        find(recipe({**CLASSES, "labels": ["good", "bad"]}), data("good", "bad", "ugly", "uglier", "ugly"))


def test_one_class_is_nothing_to_tell_apart(data: Any) -> None:
    with pytest.raises(
        UserError, match=r"a\.jsonl: all records have the same label 'a'; at least two labels are needed"
    ):
        find(recipe(CLASSES), data("a", "a"))


@pytest.mark.parametrize(("task", "value", "column"), [(CLASSES, "a", "label"), (TAGS, ["a", "a"], "tags")])
def test_one_class_that_the_recipe_names_is_nothing_to_tell_apart_either(
    data: Any, task: dict[str, Any], value: Any, column: str
) -> None:
    with pytest.raises(
        UserError, match=r"a\.jsonl: all records have the same label 'a'; at least two labels are needed"
    ):
        find(recipe({**task, "labels": ["a"]}), data(value, value, column=column))


@pytest.mark.parametrize(
    ("task", "value", "column"),
    [(CLASSES, "\ud800b", "label"), (SEVERAL, "a, \ud800b", "label"), (TAGS, ["O", "\ud800b"], "tags")],
)
def test_half_a_surrogate_pair_is_named_with_its_record(
    data: Any, task: dict[str, Any], value: Any, column: str
) -> None:
    said = re.escape(r"a.jsonl:2: label '\ud800b' contains half of a surrogate pair; repair it")
    with pytest.raises(UserError, match=said):
        find(recipe(task), data(["a"] if column == "tags" else "a", value, column=column))


def test_one_label_that_some_records_have_is_something_to_tell_apart(data: Any) -> None:
    assert find(recipe(SEVERAL), data(["toxic"], [], ["toxic"])) == {"label": ["toxic"]}


def test_records_without_any_label_are_refused(data: Any) -> None:
    with pytest.raises(UserError, match=r"no record .* label"):
        find(recipe(SEVERAL), data([], []))


def test_labels_of_a_regression_are_refused_in_words() -> None:
    with pytest.raises(ValidationError, match="labels cannot be used with kind: regression"):
        recipe({**SEVERAL, "kind": "regression", "labels": ["x"]})


def test_too_many_are_the_wrong_column(data: Any) -> None:
    assert len(find(recipe(CLASSES), data(*range(labels.MOST)))["label"]) == labels.MOST
    with pytest.raises(UserError, match=r"a\.jsonl:1002: this is label 1001 of at most 1000"):
        find(recipe(CLASSES), data(0, *range(labels.MOST + 1)))


@pytest.mark.parametrize("value", [None, "", "  ", {"a": 1}])
def test_a_record_without_a_label_is_named(data: Any, value: Any) -> None:
    with pytest.raises(UserError, match=r"a\.jsonl:2 has no label"):
        find(recipe(CLASSES), data("a", value))


# --- what a run keeps -------------------------------------------------------------------------------------------------


def test_kept_from_the_first_checkpoint_on(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    assert labels.read_labels(path) is None
    assert settle(path, recipe(CLASSES), data("ä", "b", "bb"), begun=False) == {"label": ["b", "bb", "ä"]}
    # a start that failed at its data, which were corrected
    assert settle(path, recipe(CLASSES), data("ä", "b"), begun=False) == {"label": ["b", "ä"]}
    assert json.loads(path.read_text(encoding="utf-8")) == {"label": ["b", "ä"]}
    assert labels.read_labels(path) == {"label": ["b", "ä"]}
    for again in (recipe(CLASSES), recipe({**CLASSES, "labels": ["b", "ä"]})):
        assert settle(path, again, never, begun=True) == {"label": ["b", "ä"]}


def test_a_task_without_labels_keeps_that_too(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    assert settle(path, recipe({"type": "causal-lm"}), nowhere, begun=False) == {}
    assert labels.read_labels(path) == {}


@pytest.mark.parametrize("named", [["ä", "b"], ["b"], ["b", "ä", "c"]])
def test_other_labels_than_the_runs_are_refused(data: Any, tmp_path: Path, named: list[str]) -> None:
    path = tmp_path / "labels.json"
    settle(path, recipe(CLASSES), data("ä", "b"), begun=False)
    with pytest.raises(UserError, match=r"task\.labels: this run has b, ä, the recipe .*; a run keeps its labels"):
        settle(path, recipe({**CLASSES, "labels": named}), never, begun=True)


def test_what_is_refused_is_not_kept(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    with pytest.raises(UserError):
        settle(path, recipe({**CLASSES, "labels": ["a", "c"]}), data("a", "b"), begun=False)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"label": 3}', b"\xff"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"labels\.json is damaged .*; restore it from a copy"):
        labels.read_labels(path)


def test_records_with_wrong_labels_are_passed_over_where_they_may_be_left_out(data: Any) -> None:
    def labels_of(named: list[str] | None, budget: float | None) -> list[str]:
        task = CLASSES if named is None else {**CLASSES, "labels": named}
        where = data("a", None, "b", [1], "z", "\ud83d")
        parts = [replace(part, bad_budget=budget) for part in parts_of(recipe(task), where)]
        return labels.find(parts)["label"]

    assert labels_of(None, 0.5) == ["a", "b", "z"]
    assert labels_of(["b", "a"], 0.5) == ["b", "a"]
    with pytest.raises(UserError, match=r"no record of .* has label 'c'; remove that label, or add records"):
        labels_of(["b", "a", "c"], 0.5)
    with pytest.raises(UserError, match=r"a.jsonl:2 has no label; give it one"):
        labels_of(["b", "a"], None)


def test_the_text_of_a_list_is_no_name_of_a_class(data: Any) -> None:
    for value in ('["pos"]', '["pos", "neg"]', "[1]"):
        with pytest.raises(UserError) as raised:
            find(recipe(CLASSES), data("[neg]", value))
        assert str(raised.value).partition(".jsonl:2")[2] == (
            f": label is the text of a list, {value}; give one label without brackets, or set task.kind to multi-label"
        )
    assert find(recipe(CLASSES), data("[neg]", "[", "pos")) == {"label": ["[", "[neg]", "pos"]}
    assert find(recipe(SEVERAL), data('["pos"]', '["neg", "pos"]')) == {"label": ["neg", "pos"]}
