"""What of a recipe may be on the hub, and the recipe with the commits that a run has settled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft.errors import UserError
from distft.recipe.load import differences
from distft.recipe.schema import Recipe
from distft.run.commits import keep_commits, pinned, read_commits, repositories, settled
from distft.run.folder import RunDir
from tests.unit.recipes import recipe

SEVERAL = {
    "type": "multi-task",
    "tasks": {
        name: {"task": {"type": "sequence-classification"}, "train": f"org/{name}", "eval": "/local.jsonl"}
        for name in ("a", "b")
    },
}


def named(wanted: Recipe) -> dict[str, str]:
    return {key: str(found) for key, found in repositories(wanted)}


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ({}, {}),
        ({"data": {"train": {"source": "x.en", "target": "x.de"}}}, {}),
        ({"data": {"train": "./x", "eval": "~/y"}}, {}),
        ({"model": {"init": {}}, "data": {"train": "squad"}}, {"data.train": "datasets/squad@main"}),
        ({"model": {"path": "org/m"}}, {"model.path": "models/org/m@main"}),
        (
            {
                "model": {"path": "org/m", "revision": "v1"},
                "data": {"train": "org/d", "eval": "org/e", "revision": "v2"},
            },
            {"model.path": "models/org/m@v1", "data.train": "datasets/org/d@v2", "data.eval": "datasets/org/e@v2"},
        ),
        ({"data": {"train": "org/d", "eval": "org/d"}}, {"data.train": "datasets/org/d@main"}),
        (
            {"data": {"train": ["org/d", {"path": "org/e", "revision": "v2"}, "org/*"], "revision": "v1"}},
            {"data.train.0": "datasets/org/d@v1", "data.train.1": "datasets/org/e@v2"},
        ),
        (
            {"task": SEVERAL, "data": {}},
            {"task.tasks.a.train": "datasets/org/a@main", "task.tasks.b.train": "datasets/org/b@main"},
        ),
    ],
)
def test_what_may_be_on_the_hub(sections: dict[str, Any], found: dict[str, str]) -> None:
    assert named(recipe(**sections)) == found


def revisions(wanted: Recipe) -> list[str | None]:
    return [source.revision for part in wanted.parts() for source in (*part.train, *part.eval)]


def test_a_pinned_recipe_names_commits_in_place_of_revisions() -> None:
    sources = ["org/d", {"path": "org/d", "revision": "v2", "split": "more"}, "/local.jsonl", "org/unknown"]
    wanted = recipe(model={"path": "org/m"}, data={"train": sources, "eval": "org/e", "revision": "v1"})
    assert pinned(wanted, {}) == wanted
    commits = {"models/org/m@main": "1", "datasets/org/d@v1": "2", "datasets/org/d@v2": "3", "datasets/org/e@main": "4"}
    found = pinned(wanted, commits)
    assert found.model.revision == "1"
    assert revisions(found) == ["2", "3", "v1", "v1", "v1"]  # v1 of org/e is not main
    found = pinned(wanted, commits | {"datasets/org/e@v1": "5"})
    assert revisions(found) == ["2", "3", "v1", "v1", "5"]
    assert [source.name for source in found.parts()[0].train] == [source.name for source in wanted.parts()[0].train]
    assert [change.key for change in differences(wanted, found)] == ["data.train", "data.eval", "model.revision"]
    assert pinned(found, {"datasets/org/d@2": "2"}) == found


def test_each_of_several_tasks_is_pinned() -> None:
    wanted = recipe(task=SEVERAL, data={})
    found = pinned(wanted, {"datasets/org/a@main": "1", "datasets/org/b@main": "2"})
    assert revisions(found) == ["1", None, "2", None]


def test_a_run_keeps_its_commits(tmp_path: Path) -> None:
    run, wanted = RunDir(tmp_path), recipe(model={"path": "org/m"})
    assert settled(run, wanted) == wanted
    keep_commits(run, {"models/org/m@main": "1"})
    assert settled(run, wanted).model.revision == "1"
    for text in ("{", "[]", '{"models/org/m@main": 1}'):
        run.hub.write_text(text)
        with pytest.raises(UserError, match=r"hub.json cannot be read .*; restore it from a copy"):
            read_commits(run)
