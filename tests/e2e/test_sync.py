"""One W&B run without gaps, whatever the attempts left. There is no server of W&B here: what it does is not seen."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from distft.commands.sync import choose, sync, whole_history
from distft.errors import UserError
from distft.recipe.load import dump
from distft.run.folder import RunDir
from tests.unit.recipes import recipe


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Steps 1 to 3, a crash, and 3 to 4 again, with a line that the crash cut off."""
    made = RunDir(tmp_path / "run")
    made.create("x", dump(recipe()))
    records: list[dict[str, Any]] = [
        {"step": 1, "loss": 3.0, "attempt": 1},
        {"step": 2, "loss": 2.0, "attempt": 1},
        {"step": 2, "save_seconds": 0.1, "attempt": 1},
        {"step": 3, "loss": 1.0, "attempt": 1},
    ]
    again: list[dict[str, Any]] = [
        {"step": 3, "loss": 1.0, "attempt": 2},
        {"step": 4, "loss": 0.5, "attempt": 2},
        {"step": 4, "eval_loss": 0.7, "attempt": 2},
    ]
    lines = [json.dumps(record) + "\n" for record in records]
    made.metrics.write_text("".join(lines) + '{"step": 4, "lo\n' + "".join(json.dumps(r) + "\n" for r in again))
    return made


def test_what_attempts_repeat_is_one_row(run: RunDir) -> None:
    rows = whole_history(run)
    assert [(row["step"], row["attempt"], "loss" in row) for row in rows] == [
        (1, 1, True),
        (2, 1, True),
        (2, 1, False),
        (3, 2, True),
        (4, 2, True),
        (4, 2, False),
    ]


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ({}, ("id", 0)),
        ({"id": [0, 1, 2]}, ("id", 3)),
        ({"id": [0, 1, 2, 3, 4, 5]}, ("id", 6)),
        ({"id": [0, 1, 4, 5]}, ("id-whole", 0)),  # the second attempt did not reach W&B
        ({"id": [0, 1, 4, 5], "id-whole": [0, 1, 2, 3]}, ("id-whole", 4)),
        ({"id": list(range(9))}, ("id-whole", 0)),
    ],
)
def test_what_is_there_is_completed_or_done_anew(there: dict[str, list[int]], wanted: tuple[str, int]) -> None:
    assert choose("id", 6, lambda name: there.get(name, [])) == wanted


def test_two_runs_with_gaps_are_told() -> None:
    with pytest.raises(UserError, match="the W&B runs id and id-whole both have gaps; delete the second one"):
        choose("id", 6, lambda name: [0, 2])


def test_offline_it_is_one_folder_with_every_row_once(run: RunDir) -> None:
    said = sync(run, offline=True)
    [path] = (run.path / "wandb").glob("offline-run-*/*.wandb")
    assert said == f"6 rows written; send them from a machine with internet: wandb sync {path.parent}"
    expected = [(number, row["step"]) for number, row in enumerate(whole_history(run))]
    deadline = time.monotonic() + 60.0
    while len(rows_in(path)) < len(expected) and time.monotonic() < deadline:
        time.sleep(0.1)  # a process of W&B's own writes it, and may be behind on a busy machine
    assert rows_in(path) == expected


def rows_in(path: Path) -> list[tuple[int, int]]:
    """(number, optimizer step) of each row of W&B's file, which is a LevelDB log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    content, at, found = path.read_bytes(), 7, []  # W&B's own header comes first
    while at + 7 <= len(content):
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if at + 7 + length > len(content):  # it is being written
            break
        assert kind == 1, "a record in several parts: too much for this reader"
        record = wandb_internal_pb2.Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length
        if record.HasField("history"):
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            found.append((record.history.step.num, items["step"]))
    return found


def test_nothing_recorded_is_told(tmp_path: Path) -> None:
    made = RunDir(tmp_path / "run")
    made.create("x", dump(recipe()))
    with pytest.raises(UserError, match="has no metrics yet"):
        sync(made, offline=True)
