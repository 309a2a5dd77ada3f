"""Several sources of one task, as a user mixes data: shares, losses by source, and the same run after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.command import START_SECONDS, Workplace, losses, records, until_step
from tests.e2e.models import here

SOURCES = """\
data:
  row_tokens: 64
  train:
    - {path: few.jsonl, weight: 3, fields: {prompt: question, completion: reply}}
    - {path: chats, weight: 1, filter: {lang: [en]}}
  eval: [{path: few.jsonl, name: few, fields: {prompt: question, completion: reply}}, chats/b.jsonl]
train: {steps: 24, lr: 1.0e-2, global_batch: 4, micro_batch: 2, eval_every: 12}
checkpoint: {every: 6, keep: 2}
"""


@pytest.fixture
def mixed(place: Workplace) -> Workplace:
    """Questions under other names in one file; chats in a folder of two, some of which are not to be taken."""
    few = [json.loads(line) for line in place.write_records("few.jsonl", 9, seed=1).read_text().splitlines()]
    renamed = [{"question": one["prompt"], "reply": one["completion"]} for one in few]
    (place.folder / "few.jsonl").write_text("".join(json.dumps(one) + "\n" for one in renamed))
    (place.folder / "chats").mkdir(exist_ok=True)
    for number, name in enumerate("ab"):
        path = place.write_records(f"chats/{name}.jsonl", 30, seed=number)
        rows = [
            json.loads(line) | {"lang": "en" if i % 3 else "de"} for i, line in enumerate(path.read_text().splitlines())
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = (place.folder / "recipe.yaml").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(("data:", "train:", "checkpoint:"))]
    (place.folder / "mixed.yaml").write_text("".join(kept) + SOURCES)
    return place


def test_a_mixed_run_goes_on_after_a_kill_as_if_nothing_had_happened(mixed: Workplace) -> None:
    whole, run = mixed.folder / "whole", mixed.folder / "killed"
    ended = mixed.run("train", "mixed.yaml", "--run-dir", whole, "--nproc", "1")
    assert ended.code == 0, ended.err
    assert "data.train: few: 9 documents" in ended.err
    assert "data.train: chats: 40 documents" in ended.err
    shares = [float(part.split("%")[0]) for part in ended.err.split("rows; ")[1:]]
    assert shares == [75.0, 25.0]
    with mixed.start("train", "mixed.yaml", "--run-dir", run, "--nproc", "1") as command:
        until_step(command, run, 8)
        command.ranks()[0].kill()
        assert command.end(START_SECONDS).code != 0
    again = mixed.run("train", run / "config.yaml", "--run-dir", run, "--nproc", "2")
    assert again.code == 0, again.err
    first, second = losses(whole), losses(run)
    assert first.keys() == second.keys()
    assert all(second[step][-1] == pytest.approx(first[step][-1], rel=1e-5) for step in first)

    steps = [record for record in records(whole) if "loss" in record]
    taken = {name: sum(step[f"source.{name}.documents"] for step in steps) for name in ("few", "chats")}
    assert taken["few"] > taken["chats"] > 0
    again_steps = {record["step"]: record for record in records(run) if "loss" in record}
    for step in steps:
        of_sources = {name: step[f"source.{name}.loss"] for name in taken if step[f"source.{name}.documents"]}
        assert min(of_sources.values()) - 1e-6 <= step["loss"] <= max(of_sources.values()) + 1e-6
        again_of_sources = {name: again_steps[step["step"]][f"source.{name}.loss"] for name in of_sources}
        assert again_of_sources == pytest.approx(of_sources, rel=1e-5)
    scored = [record for record in records(whole) if "eval_loss" in record]
    assert [record["step"] for record in scored] == [0, 12, 24]
    for record in scored:
        by_source = [record[f"eval_source.{name}.loss"] for name in ("few", "b")]
        assert min(by_source) < record["eval_loss"] < max(by_source)

    evaluated = mixed.run("eval", whole)
    assert evaluated.code == 0, evaluated.err
    report = json.loads((whole / "evaluations" / "eval.json").read_text())
    assert report["scores"]["loss"] == pytest.approx(scored[-1]["eval_loss"], rel=1e-5)


def test_all_sources_are_shown_and_encoded(
    mixed: Workplace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(mixed.folder)
    shown = here(monkeypatch, capfd, "data", "mixed.yaml", "--records", "2")
    assert shown.code == 0, shown.err
    assert "few.jsonl:1" in shown.out
    assert "a.jsonl:2" in shown.out
    unlike = here(monkeypatch, capfd, "data", "mixed.yaml", "data.train=[few.jsonl]")
    assert unlike.code == 2
    assert "few.jsonl:1" in unlike.sentence
    encoded = here(monkeypatch, capfd, "encode", "mixed.yaml", f"data.cache={tmp_path}")
    assert encoded.code == 0, encoded.err
    for line in ("train: few: 9 records", "train: chats: 40 records", "eval: few: 9 records", "eval: b: 30 records"):
        assert f"data.{line}, " in encoded.out
