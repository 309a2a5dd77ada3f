"""Revisions are settled as commits once, and by the hub only where the run does not know them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distft.data import hub
from distft.data.sources import Source, fingerprint
from distft.errors import UserError
from distft.process.console import Console
from distft.run.commits import Repository
from distft.run.folder import RunDir
from distft.training.hub_commits import settle_alone
from tests.unit.recipes import recipe

QUIET = Console(first=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the hub was asked; it answers with the number of the question."""
    found: list[str] = []

    def commit_of(repository: Repository) -> str:
        found.append(str(repository))
        return f"commit {len(found)}"

    monkeypatch.setattr(hub, "commit_of", commit_of)
    return found


def test_a_revision_is_settled_once(asked: list[str], tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    data = {"train": "org/d", "eval": "org/e"}
    wanted = recipe(model={"path": "org/m"}, data=data)
    found = {"models/org/m@main": "commit 1", "datasets/org/d@main": "commit 2", "datasets/org/e@main": "commit 3"}
    assert settle_alone(run, wanted, QUIET) == found
    assert json.loads(run.hub.read_text()) == found
    assert settle_alone(run, wanted, QUIET) == found
    assert len(asked) == 3
    other = recipe(model={"path": "org/m"}, data={"train": "org/d", "eval": [{"path": "org/e", "revision": "v2"}]})
    assert settle_alone(run, other, QUIET)["datasets/org/e@v2"] == "commit 4"
    assert json.loads(run.hub.read_text()) == found | {"datasets/org/e@v2": "commit 4"}
    assert asked[3:] == ["datasets/org/e@v2"]


def test_what_is_local_is_not_asked_for(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "data.jsonl").write_text("{}")
    wanted = recipe(model={"path": "here"}, data={"train": "data.jsonl"})
    assert settle_alone(RunDir(tmp_path / "run"), wanted, QUIET) == {}
    assert asked == []
    with pytest.raises(UserError, match=r"data file nowhere\.jsonl does not exist"):
        settle_alone(RunDir(tmp_path / "run"), recipe(data={"train": "nowhere.jsonl"}), QUIET)


def test_the_commit_is_in_the_fingerprint(asked: list[str]) -> None:
    sources = [
        Source("org/d"),
        Source("org/d", revision="v1"),
        Source("org/d", "test"),
        Source("org/d", hub_config="en"),
        Source("org/e"),
    ]
    assert len({fingerprint(one) for one in sources}) == 5
    assert asked == [f"datasets/org/{name}" for name in ("d@main", "d@v1", "d@main", "d@main", "e@main")]


def test_the_fingerprint_is_that_of_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"main": "a", "v1": "a", "v2": "b"}
    monkeypatch.setattr(hub, "commit_of", lambda repository: commits[repository.revision or "main"])
    main, first, second = (fingerprint(Source("org/d", revision=name)) for name in (None, "v1", "v2"))
    assert main == first != second
