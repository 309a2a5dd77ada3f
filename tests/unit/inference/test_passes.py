"""What a pass over records makes of those that cannot be scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distft.data.bad_records import Bad
from distft.data.sources import Source
from distft.errors import UserError
from distft.inference import predictor
from distft.inference.parts import Pass, line_of
from distft.inference.passes import score
from distft.metrics.scores import Report
from distft.run.folder import RunDir
from tests.unit.recipes import recipe

BAD = Bad(3, "/d:4", "/d:4 is bad")


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a pass whose parts hold these lines; the report on it is the number of its outcomes."""

    def number(run: RunDir, recipe: Any, part: str | None) -> Any:
        return lambda outcomes: Report({"number": len(outcomes)})

    def make(*lines: Any, budget: float | None = 1.0, part: str | None = None) -> Pass:
        work = Pass(RunDir(tmp_path), recipe(), [Source("/d", bad_budget=budget)], tmp_path, True, None, part)
        work.file(0).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return work

    monkeypatch.setattr(predictor, "reporter", number)
    return make


def test_lines_of_records_that_cannot_be_scored() -> None:
    assert line_of({"loss": 1.0}, 256) == {"loss": 1.0}
    assert line_of("/d:4 is empty", 256) == {"left out": "/d:4 is empty"}
    assert line_of(BAD, 256) == {"bad": {"record": 259, "where": "/d:4", "error": "/d:4 is bad"}}


def test_bad_records_are_listed_and_not_scored(parts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "list.jsonl"
    work = parts({"loss": 1.0}, line_of(BAD, 0), line_of("/d:9 is empty", 0), {"loss": 2.0}, part="mood")
    assert score(work, 1, path).scores == {"number": 2}
    [line] = path.read_text().splitlines()
    assert json.loads(line) == {"data": "eval of mood", "record": 3, "where": "/d:4", "error": "/d:4 is bad"}
    said = capsys.readouterr().out
    assert f"1 of 4 records left out, see {path}\n" in said
    assert "1 of 3 records were not scored; the first: /d:9 is empty\n" in said
    assert score(parts({"loss": 1.0}, part="mood"), 1, path).scores == {"number": 1}
    assert not path.exists()  # it was of other data


def test_more_bad_records_than_the_budget_are_refused_and_listed(parts: Any, tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    with pytest.raises(UserError, match=rf"^1 of the 2 records of /d are bad, .* all of them: {path}$"):
        score(parts({"loss": 1.0}, line_of(BAD, 0), budget=0.4), 1, path)
    assert json.loads(path.read_text())["data"] == "eval"


@pytest.mark.parametrize(
    ("budget", "answered", "refuses"), [(None, True, True), (0.0, True, False), (None, False, False)]
)
def test_one_bad_record_ends_a_pass_only_where_none_may_be_left_out(
    tmp_path: Path, budget: float | None, answered: bool, refuses: bool
) -> None:
    (tmp_path / "d.jsonl").write_text('{broken\n{"text": "a"}\n')
    source = Source(str(tmp_path / "d.jsonl"), bad_budget=budget)
    work = Pass(RunDir(tmp_path), recipe(), [source], tmp_path, answered, None)
    assert work.refuses is refuses
    if refuses:
        with pytest.raises(UserError, match=r"d\.jsonl:1 is not valid JSON"):
            list(work.records())
    else:
        assert len(list(work.records())) == 2
