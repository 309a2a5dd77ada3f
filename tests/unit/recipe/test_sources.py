"""`data.train` as a list of sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distft.errors import UserError
from distft.recipe.load import differences, dump, load, load_resolved
from distft.recipe.schema import Recipe
from distft.recipe.sources import Condition

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(data: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"model: {{path: org/model}}\ntrain: {{steps: 5}}\n{data}\n")
        return path

    return _write


def test_sources_have_what_the_section_says_where_they_say_nothing(write: Write, tmp_path: Path) -> None:
    path = write(
        "data: {fields: {prompt: q}, encoding: latin-1, train_split: all, template: a.jinja, train: ["
        "{path: chats/*.jsonl.zst, weight: 3, filter: {lang: [en, de], score: {min: 0.5}}}, "
        "{path: org/name, split: train, weight: 1, fields: {text: t}, template: b.jinja, encoding: utf-8}, "
        "{path: {source: a.de, target: a.en}, weight: 2, name: pairs}], eval: [c.jsonl, org/name]}"
    )
    recipe = load(path, [])
    [part] = recipe.parts()
    first, second, third = part.train
    assert first.path == f"{tmp_path}/chats/*.jsonl.zst"
    assert (first.name, second.name, third.name) == ("chats", "org-name", "pairs")
    assert third.path == {"source": f"{tmp_path}/a.de", "target": f"{tmp_path}/a.en"}
    assert (first.fields, first.encoding, first.split, first.template) == (
        {"prompt": "q"},
        "latin-1",
        "all",
        f"{tmp_path}/a.jinja",
    )
    assert (second.path, second.fields, second.encoding, second.split, second.template) == (
        "org/name",
        {"text": "t"},
        "utf-8",
        "train",
        f"{tmp_path}/b.jinja",
    )
    assert first.filter == {"lang": ["en", "de"], "score": Condition(min=0.5)}
    assert [(one.name, one.split) for one in part.eval] == [("c", "validation"), ("org-name", "validation")]
    path.write_text(dump(recipe))
    assert load_resolved(path) == load(path, []) == recipe


def test_another_source_is_another_run(write: Write) -> None:
    old, new = load(write("data: {train: [a.jsonl, b.jsonl]}"), []), load(write("data: {train: [a.jsonl]}"), [])
    assert [(one.key, one.rule) for one in differences(old, new)] == [("data.train", "to be allowed")]


def names(write: Write, *places: str) -> list[str | None]:
    recipe: Recipe = load(write(f"data: {{train: [{', '.join(places)}]}}"), [])
    return [source.name for source in recipe.parts()[0].train]


def test_names_differ(write: Write) -> None:
    places = ("a.jsonl", "x/a.csv", "x/*.jsonl.gz", "{path: y/b.jsonl, name: a}", "a b.txt", "'*.json'")
    assert names(write, *places)[:5] == ["a-2", "a-3", "x", "a", "a-b"]
    assert names(write, "org/a", "other/a") == ["org-a", "other-a"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("train: [a.jsonl, {path: b.jsonl, weight: 1}]", "data.train: give a weight to all sources or to none; a has"),
        ("train: [{path: a.jsonl, name: x}, {path: b.jsonl, name: x}]", "data.train: two sources are called 'x'"),
        ("train: [{path: a.jsonl, wieght: 1}]", "data.train.0.wieght: unknown key; did you mean weight?"),
        ("train: [a.jsonl, {weight: 1}]", "data.train.1.path: missing; give it: file, folder of files"),
        ("train: []", "data.train: got []; must have at least 1 item"),
        ("train: [5]", "data.train.0: got 5; write keys under it"),
        ("train: [{path: a, filter: {lang: {}}}]", "data.train.0.filter.lang: write min, max or none_of"),
        ("train: [{path: a, filter: {lang: {mni: 3}}}]", "data.train.0.filter.lang.mni: unknown key; did you mean min"),
        ("train: [{path: a, weight: 0}]", "data.train.0.weight: got 0; must be greater than 0"),
        ("train: a, eval: [{path: b, weight: 1}]", "data.eval.0.weight: held-out data are taken as they are"),
        ("train: [{path: 'https://x.y/z'}]", "data.train.0.path: got 'https://x.y/z'; distft reads files, folders"),
    ],
)
def test_what_is_wrong_with_a_source_is_said_once(write: Write, data: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        load(write(f"data: {{{data}}}"), [])
    message = str(error.value)
    assert message.count("recipe.yaml:") == 1
    assert f"recipe.yaml:3: {told}" in message


def test_fields_of_a_source_are_those_of_the_task(write: Write) -> None:
    path = write("task: {type: dpo}\ndata: {train: [{path: a.jsonl, fields: {promt: q}}]}")
    with pytest.raises(UserError, match=r"data\.train\.0\.fields\.promt: task\.type dpo has no such field; its fields"):
        load(path, [])
