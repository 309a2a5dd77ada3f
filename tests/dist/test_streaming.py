"""Runs that stream: however they were stopped, prepared and laid out, they are the same run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import distft.sample
from tests.dist import scenario
from tests.dist.launch import run_ranks
from tests.dist.recipe import RECIPE
from tests.dist.streaming import HALF, STEPS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    data = Path(distft.sample.__file__).with_name("conversations.jsonl")
    (folder / "recipe.yaml").write_text(RECIPE.format(data=data, cache=folder / "cache"))
    ranks(folder, 2, "pieces")
    return folder


def ranks(folder: Path, nproc: int, what: str) -> None:
    run_ranks("tests.dist.streaming", nproc, what, str(folder), str(folder / "recipe.yaml"))


def same_losses(folder: Path, other: str) -> None:
    whole, pieces = scenario.losses(folder / "whole"), scenario.losses(folder / other)
    assert sorted(whole) == sorted(pieces) == list(range(1, STEPS + 1))
    for step in whole:
        assert set(pieces[step]) == set(whole[step]), f"step {step}"


def test_a_stop_and_a_lost_step_change_no_bit(folder: Path) -> None:
    same_losses(folder, "broken")
    samples = scenario.samples(folder / "whole")
    assert [len(micros) for micros in samples.values()] == [8] * STEPS
    fed = [sample for micros in samples.values() for rows in micros for row in rows for sample in row]
    assert len(set(fed)) > 300


def test_a_prepared_cache_changes_no_bit(folder: Path) -> None:
    ranks(folder, 2, "prepared")
    same_losses(folder, "prepared")


def test_one_rank_goes_on_with_the_samples_of_two(folder: Path) -> None:
    ranks(folder, 2, "begun")
    ranks(folder, 1, "ended")
    assert scenario.samples(folder / "relayout") == scenario.samples(folder / "whole")
    whole, other = scenario.losses(folder / "whole"), scenario.losses(folder / "relayout")
    assert all(abs(whole[step][0] - other[step][0]) < 1e-4 for step in range(1, HALF + 3))


def test_documents_that_share_no_row(folder: Path) -> None:
    ranks(folder, 2, "padded")
    one, four = (scenario.samples(folder / f"padded-{micro}") for micro in (1, 4))
    for step in one:
        rows = [[row for micro in fed[step] for row in micro] for fed in (one, four)]
        assert rows[0] == rows[1]
        assert all(len(row) == 1 for row in rows[0])


def test_bad_records_are_listed_once(folder: Path) -> None:
    data = Path(distft.sample.__file__).with_name("conversations.jsonl").read_text().splitlines()
    places = [3, 64, 65, 200, 401]
    for place in places:
        data.insert(place, '{"messages": 3}')
    (folder / "spoilt.jsonl").write_text("\n".join(data) + "\n")
    (folder / "spoilt.json").write_text(json.dumps(places))
    ranks(folder, 2, "bad")


def test_a_rollback_feeds_the_same_rows(folder: Path) -> None:
    ranks(folder, 2, "rollback")
    same_losses(folder, "rollback")
