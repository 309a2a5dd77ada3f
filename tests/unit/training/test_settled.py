"""What `auto` has come to, as checkpoints keep it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as td

from distft.errors import UserError
from distft.model.attention import keep_trial
from distft.process.distributed import Ranks
from distft.recipe.load import dump
from distft.run.folder import RunDir
from distft.training.settled import found
from tests.unit.recipes import recipe


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create("x", dump(recipe()))
    return made


@pytest.fixture
def alone() -> Ranks:
    return Ranks(0, 0, 1, torch.device("cpu"), td.HashStore())


def test_only_what_the_recipe_leaves_open_is_kept(run: RunDir, alone: Ranks) -> None:
    train = {"steps": 5, "global_batch": 8, "micro_batch": 2}
    model = {"path": "/m", "activation_checkpointing": "selective", "attention": "sdpa"}
    settled = recipe(train=train, model=model)
    assert found(run, settled, settled, alone) == {}
    asked = recipe(train=train | {"micro_batch": "auto"}, model=model | {"activation_checkpointing": "auto"})
    assert found(run, asked, settled, alone) == {
        "train.micro_batch": "2",
        "model.activation_checkpointing": "selective",
    }


def test_whether_attention_may_be_by_document_is_as_the_trial_found_it(run: RunDir, alone: Ranks) -> None:
    made = recipe()
    assert found(run, made, made, alone) == {"model.attention": "with masks"}
    keep_trial(run, True)
    assert found(run, made, made, alone) == {"model.attention": "by document"}
    run.attention.unlink()  # the run began with it all the same: its checkpoint says so
    assert found(run, made, made, alone) == {"model.attention": "with masks"}
    run.attention.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        found(run, made, made, alone)
