"""Rows of several sources by weight: exact shares, and each source in its own order."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distft.data.blend import Blend
from distft.data.loader import RowLoader, Share, Shuffle, Slots, by_cost
from distft.data.mixture import CYCLE, shares
from distft.data.packing import pack

SIZES = np.random.default_rng(0).integers(1, 60, 240, dtype=np.int32)
FIRSTS = [0, 150, 233, 240]  # of three sources
WEIGHTS = [1.0, 2.5, 0.3]
NAMES = ["a", "b", "c"]
CORPUS: Any = SimpleNamespace(sizes=SIZES, targets=SIZES // 2, first_documents=np.array(FIRSTS))


def orders(batch: int | None = None) -> list[Shuffle]:
    return [Shuffle(CORPUS, pack(SIZES[begin:end], 64, 5), 5, batch, first=begin) for begin, end in pairwise(FIRSTS)]


def sources_of(ids: list[int]) -> set[int]:
    return {int(np.searchsorted(FIRSTS[1:-1], one, side="right")) for one in ids}


@pytest.mark.parametrize("batch", [None, 4])
def test_each_cycle_has_the_shares_and_each_source_its_own_order(batch: int | None) -> None:
    blend, own = Blend(orders(batch), WEIGHTS, 7), orders(batch)
    seen = [0, 0, 0]
    for cycle in range(3):
        counts = [0, 0, 0]
        for index in range(cycle * CYCLE, (cycle + 1) * CYCLE):
            ids = blend.samples(index)
            [source] = sources_of(ids)
            assert ids == own[source].samples(seen[source])
            seen[source] += 1
            counts[source] += 1
        assert counts == shares(WEIGHTS)
    assert seen[2] > len(pack(SIZES[233:], 64, 5))  # it went on with its next epochs


def test_widths_and_documents_are_those_of_the_rows() -> None:
    blend = Blend(orders(), WEIGHTS, 7)
    for rows in (range(0), range(3, 4), range(250, 300), range(CYCLE * 2 + 1)):
        ids = [blend.samples(index) for index in rows]
        assert blend.costs(np.array(rows, np.int64)).tolist() == [int(SIZES[one].max()) for one in ids]
        assert sorted(blend.documents(rows).tolist()) == sorted(sample for one in ids for sample in one)
    places = list(range(40, 72))
    widths = [int(SIZES[blend.samples(place)].max()) for place in by_cost(blend, places)]
    assert widths == sorted(widths, reverse=True)


def test_a_step_says_what_it_takes_of_each_source() -> None:
    blend = Blend(orders(), WEIGHTS, 7)
    loader = RowLoader(CORPUS, blend, Slots(16, 2, 0, 1), 0, sources=NAMES)
    for step in range(20):
        ids = [sample for micro in loader.step(step) for row in micro.samples for sample in row]
        of = np.searchsorted(FIRSTS[1:-1], ids, side="right")
        expected = {
            name: Share(int((of == number).sum()), int(SIZES[ids][of == number].sum()))
            for number, name in enumerate(NAMES)
        }
        assert loader.census(step).sources == expected


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_rows_of_one(world: int) -> None:
    whole = RowLoader(CORPUS, Blend(orders(), WEIGHTS, 7), Slots(16, 2, 0, 1), 0, sorts=True)
    for step in range(5):
        parts = [
            micro
            for rank in range(world)
            for micro in RowLoader(CORPUS, Blend(orders(), WEIGHTS, 7), Slots(16, 2, rank, world), 0, sorts=True).step(
                step
            )
        ]
        assert sorted(parts, key=lambda micro: micro.index) == list(whole.step(step))
