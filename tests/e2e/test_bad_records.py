"""Bad records are left out of a run as if somebody had removed them from the files before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.command import eval_losses, losses
from tests.e2e.conftest import Made

BAD = {1: '{"prompt": "cut o', 7: '{"prompt": "no answer"}', 8: "[]"}  # index: line


def spoilt(path: Path, name: str) -> Path:
    """The same records with bad ones in between, which have the indexes of `BAD`."""
    lines = path.read_text().splitlines()
    for index, line in BAD.items():
        lines.insert(index, line)
    other = path.with_name(name)
    other.write_text("\n".join(lines) + "\n")
    return other


@pytest.mark.long
def test_losses_are_those_of_data_without_the_bad_records(unbroken: Made) -> None:
    place, run = unbroken.place, unbroken.place.folder / "lenient"
    train, held_out = (spoilt(place.folder / f"{name}.jsonl", f"spoilt-{name}.jsonl") for name in ("train", "eval"))
    what = ("train", "recipe.yaml", f"data.train={train}", f"data.eval={held_out}", "--run-dir", run, "--nproc", "2")
    refused = place.run(*what)
    assert refused.code == 2
    assert refused.sentence.startswith(f"{train}:2 is not valid JSON")
    too_many = place.run(*what, "data.bad_records=skip")
    assert too_many.code == 2
    assert too_many.sentence.startswith(
        f"3 of the 63 records of {train} are bad, more than data.bad_budget 0.01 allows"
    )
    assert too_many.sentence.endswith(f"all of them: {run / 'bad-records.jsonl'}")
    assert [json.loads(line)["record"] for line in (run / "bad-records.jsonl").read_text().splitlines()] == list(BAD)
    ended = place.run(*what, "data.bad_records=skip", "data.bad_budget=0.05")
    assert ended.code == 0, ended.err
    assert losses(run) == losses(unbroken.run)
    assert eval_losses(run) == eval_losses(unbroken.run)
    for name, records in (("train", 63), ("eval", 703)):
        sentence = f"data.{name}: 3 of {records} records left out, see {run / 'bad-records.jsonl'}"
        assert ended.err.count(sentence) == 1
    listed = [json.loads(line) for line in (run / "bad-records.jsonl").read_text().splitlines()]
    files = {"train": train, "eval": held_out}
    expected = [(name, index, f"{file}:{index + 1}") for name, file in files.items() for index in BAD]
    assert [(one["data"], one["record"], one["where"]) for one in listed] == expected
    assert all(one["error"].startswith(one["where"]) for one in listed)

    scored = place.run("eval", run, "--nproc", "2")
    assert scored.code == 0, scored.err
    assert f"3 of 703 records left out, see {run / 'evaluations' / 'eval.bad-records.jsonl'}" in scored.out
    lines = (run / "evaluations" / "eval.bad-records.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == listed[3:]
    report = json.loads((run / "evaluations" / "eval.json").read_text())
    assert report["scores"]["loss"] == pytest.approx(eval_losses(run)[-1], rel=1e-5)
    shutil.rmtree(run)
