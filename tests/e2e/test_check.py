"""`distft submit --check` on the nodes: two light parents stand for them, and train a small model as runs do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distft.recipe.load import dump, load
from launchers.slurm.probe import RECIPE
from tests.e2e.command import Workplace
from tests.e2e.nodes import nodes_of

PROBE = "launchers.slurm.probe"


def check_in(place: Workplace, name: str, *overrides: str) -> Path:
    folder = place.folder / name
    folder.mkdir()
    (folder / RECIPE).write_text(dump(load(place.folder / "recipe.yaml", [*overrides])))
    return folder


def test_a_check_trains_a_small_model_on_all_nodes(place: Workplace) -> None:
    folder = check_in(place, "check", "engine.zero_stage=3", "engine.dtype=bf16")
    with nodes_of(place, folder, PROBE, (1, 1)) as nodes:
        codes = nodes.codes()
        said = nodes.said(0)
        assert codes == [0, 0], said + nodes.said(1)
    assert "all-reduce of 64 MiB over 2 ranks: correct" in said
    assert re.search(r"training a small model with 2 forked ranks, ZeRO 3, bf16: 3 steps of [\d.]+ s, loss \d", said)
    assert {"agreed", "trained"} <= {path.name for path in folder.iterdir()}
    assert (folder / "run" / "final").exists()


@pytest.mark.long
def test_a_check_that_cannot_train_says_why(place: Workplace) -> None:
    folder = check_in(place, "check-broken", "model.attention=flash_attention_2")
    with nodes_of(place, folder, PROBE, (1,)) as nodes:
        assert nodes.codes() != [0]
        said = nodes.said(0)
    assert "all-reduce of 64 MiB over 1 ranks: correct" in said
    assert "FlashAttention2 doesn't seem to be installed" in said
    assert "training a small model: FAILED (exit code 2)" in said
    assert not (folder / "trained").exists()
