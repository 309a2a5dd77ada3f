"""`distft data`, as a user looks at data before training."""

from __future__ import annotations

import pytest

from tests.e2e.command import Workplace
from tests.e2e.models import here

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own


def test_data_are_shown_as_they_will_be_trained(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.folder)
    runs = sorted(place.folder.glob("runs/*"))  # of other tests
    shown = here(monkeypatch, capfd, "data", "recipe.yaml", "--records", "1", "--ids")
    assert shown.code == 0, shown.err
    assert "train.jsonl:1" in shown.out
    assert "\u27e6" in shown.out  # no colours here, so brackets
    assert " to learn (" in shown.out
    assert sorted(place.folder.glob("runs/*")) == runs

    paged = here(monkeypatch, capfd, "data", "recipe.yaml", "--html", "page.html")
    assert paged.code == 0, paged.err
    assert "<mark>" in (place.folder / "page.html").read_text()


def test_data_that_cannot_be_used_are_an_error(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place.folder)
    lines = (place.folder / "train.jsonl").read_text().splitlines()[:5]
    (place.folder / "half-right.jsonl").write_text("\n".join([*lines, '{"messages": 3}']) + "\n")
    unlike = here(monkeypatch, capfd, "data", "recipe.yaml", "data.train=half-right.jsonl", "--records", "0")
    assert unlike.code == 2
    assert "half-right.jsonl:6" in unlike.sentence
    missing = here(monkeypatch, capfd, "data", "recipe.yaml", "--eval")
    assert missing.code == 2
    assert missing.sentence == "the recipe names no data.eval"
    several = here(monkeypatch, capfd, "data", "recipe.yaml", "--task", "x")
    assert several.code == 2
