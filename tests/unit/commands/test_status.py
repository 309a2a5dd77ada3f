"""`distft status` from run folders alone: which runs it finds, what it reads of them, and how it shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distft.cli.looks import app
from distft.commands import run_search, status
from distft.errors import UserError
from distft.run.folder import Run, RunDir
from launchers.local import settle_recipe
from tests.unit.recipes import recipe


def made(path: Path, train: dict[str, Any] | None = None, **values: Any) -> RunDir:
    run = RunDir(path)
    settle_recipe(run, recipe(name=path.name, train={"steps": 5, **(train or {})}))
    run.write(Run(path.name, **values))
    return run


def called(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["status", *map(str, words)])


# --- which runs -------------------------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_and_nothing_is_looked_for_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b", "team/a", "team/sub/c", "b/attempts/old", ".trash/d", "team/.hidden/e", "elsewhere/f"):
        made(tmp_path / "runs" / name)
    (tmp_path / "runs" / "elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    found, unread = run_search.find([])
    assert [str(run.path.relative_to(tmp_path)) for run in found] == ["runs/b", "runs/team/a", "runs/team/sub/c"]
    assert unread == []


def test_a_folder_that_is_no_run_stands_for_those_in_it(tmp_path: Path) -> None:
    runs = [made(tmp_path / "team" / name).path for name in ("a", "b")]
    found, _ = run_search.find([tmp_path / "team", runs[1]])
    assert [run.path for run in found] == runs
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"^{folder} holds no run"):
            status.all_statuses([folder])
    (runs[0] / "run.json").write_text("{")
    statuses, broken = status.all_statuses([tmp_path / "team"])  # neither was named
    assert [found.name for found in statuses] == ["b"]
    assert "a/run.json is damaged" in broken[0]


def test_without_runs_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert called().output == "no runs in ./runs; give a run folder\n"
