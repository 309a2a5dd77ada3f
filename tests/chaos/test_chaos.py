"""A few trials of `make soak`, and what the plans of a soak are made of."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.chaos import corrupt, encoding
from tests.chaos.plan import EARLY_PLACES, EXPORT, SAVE_PLACES, Configuration, Kill, Trial, trial
from tests.chaos.trial import Ground

TWO = Configuration("lora", 2, "fp32", 2)
KILLS = {
    "file": Kill("rank", 1, place="rank-00001.safetensors is not synced"),
    "commit": Kill("rank", 0, place="the checkpoint is not renamed"),
    "instant": Kill("parent", 0, step=21, seconds=0.01),
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("chaos"))


def test_kills_in_saves_and_out_of_them_leave_no_trace(ground: Ground) -> None:
    result = ground.run(Trial(0, TWO, tuple(KILLS.values())))
    assert result.wrong == []
    assert result.killed == len(KILLS)
    assert result.lost > 0


@pytest.mark.long
@pytest.mark.parametrize(("nodes", "kills"), [(False, 3), (True, 2)])
def test_kills_while_data_are_encoded_change_no_byte(tmp_path: Path, nodes: bool, kills: int) -> None:
    assert encoding.trials(tmp_path, 1, kills, nodes) == (kills, [])


def test_damage_is_found_and_the_checkpoint_before_is_used() -> None:
    done, wrong = corrupt.run(seed=1, number=300)
    assert wrong == []
    assert done.total() > 290
    assert len(done) == len(set(corrupt.DAMAGES))


def test_plans_are_the_same_for_the_same_seed_and_cover_what_they_must() -> None:
    trials = [trial(1, number) for number in range(150)]
    assert trials == [trial(1, number) for number in range(150)]
    assert trials != [trial(2, number) for number in range(150)]
    kills = list(itertools.chain.from_iterable(one.kills for one in trials))
    assert len(kills) == 300
    assert sum(kill.in_save for kill in kills) >= 60
    assert sum(kill.place in EARLY_PLACES for kill in kills) <= 15
    assert {kill.rank for kill in kills if kill.place == EXPORT} == {0}
    assert {kill.victim for kill in kills} == {"rank", "all ranks", "parent"}
    assert {kill.place for kill in kills if kill.in_save} >= set(SAVE_PLACES[2:])
    configurations = {one.configuration for one in trials}
    assert {c.adapter for c in configurations} == {"lora", "full"}
    assert {(c.zero_stage, c.dtype) for c in configurations} == set(itertools.product((1, 2, 3), ("fp32", "bf16")))
    assert {c.ranks for c in configurations} == {1, 2, 4}
