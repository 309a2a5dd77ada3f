"""`distft data` and `distft encode`, as a user looks at data and encodes them before training."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from distft.data import encoding
from distft.data.corpus import Corpus
from distft.process import stop_signals
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


def test_data_that_were_encoded_ahead_are_found(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(encoding, "PART_BYTES", 2000)
    listening = [(number, signal.getsignal(number)) for number in stop_signals.SIGNALS]
    lines = (place.folder / "train.jsonl").read_text().splitlines()
    monkeypatch.setattr(stop_signals, "_received", [])
    (tmp_path / "held.jsonl").write_text("\n".join(lines[:5]))
    how = ["encode", "recipe.yaml", f"data.cache={tmp_path}", f"data.eval={tmp_path / 'held.jsonl'}", "--workers", "2"]
    try:
        first, again = here(monkeypatch, capfd, *how), here(monkeypatch, capfd, *how)
        shorter = here(monkeypatch, capfd, *how, "data.row_tokens=32")
        os.kill(os.getpid(), signal.SIGTERM)
        stopped = here(monkeypatch, capfd, *how, "data.fields={prompt: prompt, completion: completion}")
    finally:
        for number, handler in listening:
            signal.signal(number, handler)
    assert first.code == 0, first.err
    assert f"data.train: {len(lines)} records, " in first.out
    assert "data.eval: 5 records, " in first.out
    assert f"{len(lines)}/{len(lines)}" in first.err  # the bar
    assert "records" not in again.err
    folders = [Path(line.split()[1]) for line in again.out.splitlines() if line.startswith("  in ")]
    assert [Corpus.open(folder).meta.records for folder in folders] == [len(lines), 5]
    assert "records" not in shorter.err  # nothing is encoded for another length of a row
    assert [line.split()[1] for line in shorter.out.splitlines() if line.startswith("  in ")] == [*map(str, folders)]
    twins = (
        "data.eval: 5 of 5 documents are in the training data too, so scores on them say little; the first: record 1 of"
    )
    assert all(f"warning: {twins}" in one.out for one in (first, again, shorter))
    assert stopped.code == 75
    assert "stopped on request; what was encoded is kept" in stopped.err
    assert "before the first step" not in stopped.err
