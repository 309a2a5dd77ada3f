"""What a run has settled for `auto`, in batch.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft.errors import UserError
from distft.recipe.load import differences, dump
from distft.recipe.schema import Recipe
from distft.run.batch import Batch, is_open, keep_batch, meant_alike, read_batch, rows_at_once, settled
from distft.run.folder import RunDir
from tests.unit.recipes import recipe

FOUND = Batch(2, "selective", "it fits", 7, 9)


def wanted(rows: int | str = "auto", again: Any = "auto") -> Recipe:
    train = {"steps": 5, "global_batch": 8, "micro_batch": rows}
    return recipe(train=train, model={"path": "/m", "activation_checkpointing": again})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create("x", dump(wanted()))
    return made


def test_what_was_settled_is_kept(run: RunDir) -> None:
    assert settled(run, wanted()) == wanted()  # nothing yet
    keep_batch(run, FOUND)
    assert read_batch(run) == FOUND
    assert settled(run, wanted()) == wanted(2, "selective")
    assert not is_open(settled(run, wanted()))


def test_only_what_is_open_is_settled(run: RunDir) -> None:
    keep_batch(run, FOUND)
    assert settled(run, wanted(4)) == wanted(4, "selective")
    assert settled(run, wanted(again=False)) == wanted(2, "off")
    assert settled(run, wanted(4, True)) == wanted(4, "full")
    assert FOUND.overrides(wanted()) == "train.micro_batch=2 model.activation_checkpointing=selective"
    assert FOUND.overrides(wanted(4)) == "model.activation_checkpointing=selective"


def test_who_asks_a_trained_run_gets_its_rows_or_the_default(run: RunDir) -> None:
    assert rows_at_once(run, wanted()) == 4
    keep_batch(run, FOUND)
    assert rows_at_once(run, wanted()) == 2
    assert rows_at_once(run, wanted(8)) == 8


def test_to_write_down_what_was_settled_is_no_change(run: RunDir) -> None:
    keep_batch(run, FOUND)

    def changed(new: Recipe) -> dict[str, object]:
        found = differences(meant_alike(run, wanted(), new), new)
        return {one.key: one.old for one in found if one.rule != "harmless"}

    assert changed(wanted()) == {}
    assert changed(wanted(2, "selective")) == {}
    assert changed(wanted(2)) == {}
    assert changed(wanted(1)) == {"train.micro_batch": 2}
    assert changed(wanted(2, "full")) == {"model.activation_checkpointing": "selective"}


@pytest.mark.parametrize("text", ["", "{}", '{"micro_batch": 0, "activation_checkpointing": "off", "why": ""}', "[1]"])
def test_a_damaged_file_is_said_in_a_sentence(run: RunDir, text: str) -> None:
    run.batch.write_text(text)
    with pytest.raises(UserError, match=r"batch\.json cannot be read .*set train.micro_batch"):
        settled(run, wanted())
    assert settled(run, wanted(4, "off")) == wanted(4, "off")  # nobody reads it then
