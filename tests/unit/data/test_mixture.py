"""Several tasks in turn: exact shares, and where each stands in its data follows from the position alone."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data.loader import Census, MicroBatch, Shuffle, Slots
from distft.data.mixture import CYCLE, Ingredient, Mixture, shares, weights_of
from distft.data.packing import one_per_row
from distft.data.records import Document

BATCH, MICRO = 8, 2
A_STEP = BATCH // MICRO
STEPS = CYCLE // A_STEP  # of a cycle
SIZES = {"long": 101, "short": 7, "tiny": 1}


def ingredient(rows: int, weight: float, seed: int = 0, batch: int | None = None) -> Ingredient:
    corpus: Any = SimpleNamespace(
        document=lambda sample: Document({"tokens": np.full(3, sample)}, 3, record=sample),
        sizes=np.arange(1, rows + 1, dtype=np.int32),
        targets=np.arange(rows, dtype=np.int32) ** 2,
        first_documents=np.array([0, rows]),
    )
    return Ingredient(corpus, Shuffle(corpus, one_per_row(rows), seed, batch), weight)


def mixture(rank: int = 0, world: int = 1, seed: int = 0, sorts: bool = False, **weights: float) -> Mixture:
    weights = weights or {"short": 1.0, "long": 2.0, "tiny": 0.1}
    parts = {name: ingredient(SIZES.get(name, 5), weight, seed) for name, weight in weights.items()}
    return Mixture(parts, Slots(BATCH, MICRO, rank, world), seed, sorts)


def stream(steps: int, world: int = 1, **options: Any) -> list[MicroBatch]:
    """The micro-batches of all ranks in the order of the steps and of their indices."""
    ranks = [mixture(rank, world, **options) for rank in range(world)]
    found = []
    for step in range(steps):
        micros = sorted((micro for one in ranks for micro in one.step(step)), key=lambda micro: micro.index)
        assert [micro.index for micro in micros] == list(range(A_STEP))
        found += micros
    return found


@settings(deadline=None)
@given(weights=st.lists(st.integers(1, 10**6).map(lambda n: n / 64), min_size=2, max_size=9))
def test_shares_fill_a_cycle_and_nobody_is_left_out(weights: list[float]) -> None:
    found = shares(weights)
    assert sum(found) == CYCLE
    assert min(found) >= 1
    assert all(
        abs(share - CYCLE * weight / sum(weights)) <= len(weights) for share, weight in zip(found, weights, strict=True)
    )
    assert [s for _, s in sorted(zip(weights, found, strict=True))] == sorted(found)  # who weighs more gets no less
    assert shares([8 * weight for weight in weights]) == found  # in any unit


def test_shares_are_exact_where_they_can_be() -> None:
    assert shares([1.0, 1.0]) == [128, 128]
    assert shares([3.0, 1.0]) == [192, 64]
    assert shares([1.0] * 4) == [64] * 4
    assert shares([1e9, 1e-9]) == [255, 1]


@settings(deadline=None)
@given(weights=st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=9))
def test_shares_of_ordinary_weights_are_what_they_always_were(weights: list[float]) -> None:
    """Else runs of older versions would go on with another mixture."""
    exact = np.array(weights) / sum(weights) * (CYCLE - len(weights))
    found = np.floor(exact).astype(int)
    rest = CYCLE - len(weights) - int(found.sum())
    found[np.argsort(found - exact, kind="stable")[:rest]] += 1
    assert shares(weights) == (found + 1).tolist()


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        ([1e308, 1e308], [128, 128]),
        ([1.5e308, 0.5e308, 1e308, 1e308], shares([3.0, 1.0, 2.0, 2.0])),
        ([5e-324, 5e-324], [128, 128]),
        ([1e308, 5e-324], [255, 1]),
    ],
)
def test_shares_of_weights_at_the_ends_of_what_floats_hold(weights: list[float], wanted: list[int]) -> None:
    assert shares(weights) == wanted


@settings(deadline=None)
@given(rows=st.lists(st.integers(1, 10**9), min_size=2, max_size=9), temperature=st.floats(0.05, 1e3))
def test_weights_are_by_temperature(rows: list[int], temperature: float) -> None:
    wanted = {str(number): number ** (1 / temperature) for number in rows}
    assert weights_of({str(number): number for number in rows}, temperature) == wanted


@pytest.mark.parametrize(
    ("temperature", "wanted"), [(0.001, [170, 85, 1]), (5e-324, [254, 1, 1]), (1e308, [86, 85, 85])]
)
def test_temperatures_at_the_ends(temperature: float, wanted: list[int]) -> None:
    rows = {"a": 10**6, "b": 10**6 - 693, "c": 9}  # of a thousandth "b" weighs half of "a": exp(-0.693)
    assert shares(list(weights_of(rows, temperature).values())) == wanted
    assert weights_of({"a": 1, "b": 1}, temperature) == {"a": 1.0, "b": 1.0}


def test_every_cycle_has_the_exact_shares_in_an_order_of_its_own() -> None:
    found = [micro.part for micro in stream(5 * STEPS)]
    cycles = [found[begin : begin + CYCLE] for begin in range(0, len(found), CYCLE)]
    names = ["long", "short", "tiny"]
    assert [Counter(cycle) for cycle in cycles] == [Counter(dict(zip(names, shares([2.0, 1.0, 0.1]), strict=True)))] * 5
    assert len({str(cycle) for cycle in cycles}) == 5
    # well mixed: no task comes in one block
    assert all(max(len(list(run)) for _, run in itertools.groupby(cycle)) < 40 for cycle in cycles)


def test_each_tasks_rows_come_in_the_order_of_its_epochs_without_gaps() -> None:
    found = stream(4 * STEPS)
    for name, rows in SIZES.items():
        own = [micro for micro in found if micro.part == name]
        assert [place for micro in own for place in micro.places] == list(range(MICRO * len(own)))
        fed = [sample for micro in own for [sample] in micro.samples]
        shuffle = ingredient(rows, 1.0).shuffle
        assert fed == [sample for index in range(len(fed)) for sample in shuffle.samples(index)]
        for begin in range(0, len(fed) - rows, rows):
            assert sorted(fed[begin : begin + rows]) == list(range(rows))


@pytest.mark.parametrize("sorts", [False, True])
@pytest.mark.parametrize("world", [2, 4])
def test_every_number_of_ranks_feeds_the_same(world: int, sorts: bool) -> None:
    assert stream(STEPS + 3, world, sorts=sorts) == stream(STEPS + 3, sorts=sorts)


def test_rows_are_sorted_among_the_micro_batches_of_their_task_and_step() -> None:
    plain, found = stream(STEPS), stream(STEPS, sorts=True)
    assert [micro.part for micro in plain] == [micro.part for micro in found]
    for begin in range(0, len(found), A_STEP):
        for name in SIZES:
            rows, others = (
                [
                    (place, row)
                    for one in micros[begin : begin + A_STEP]
                    if one.part == name
                    for place, [row] in zip(one.places, one.samples, strict=True)
                ]
                for micros in (plain, found)
            )
            assert sorted(rows) == sorted(others)
            assert [row for _, row in others] == sorted((row for _, row in others), reverse=True)  # row i has i + 1


def test_the_census_is_of_what_all_ranks_are_fed() -> None:
    micros = stream(2 * STEPS)
    for step in range(2 * STEPS):
        parts: dict[str, Census] = {}
        for micro in micros[step * A_STEP : (step + 1) * A_STEP]:
            assert micro.part is not None
            fed = [sample for row in micro.samples for sample in row]
            so_far = parts.get(micro.part, Census())
            parts[micro.part] = Census(
                so_far.micro_batches + 1,
                so_far.rows + MICRO,
                so_far.documents + len(fed),
                so_far.targets + sum(sample**2 for sample in fed),
            )
        assert mixture(1, 2).census(step) == Census(parts=parts)


def test_any_step_can_be_sought() -> None:
    walked = mixture(1, 2)
    history = [list(walked.step(step)) for step in range(3 * STEPS)]
    assert list(mixture(1, 2).step(3 * STEPS - 1)) == history[-1]
    assert list(walked.step(17)) == history[17]  # and going back changes nothing
    far = list(mixture(1, 2).step(10**9))
    assert far == list(walked.step(10**9))


def test_seeds_differ_and_names_in_another_order_do_not() -> None:
    assert stream(STEPS, seed=1) != stream(STEPS, seed=2)
    weights = {"a": 1.0, "b": 3.0}
    assert stream(STEPS, **weights) == stream(STEPS, **dict(reversed(weights.items())))


def test_documents_are_those_of_the_task_and_know_it() -> None:
    made = mixture(short=1.0, long=1.0)
    draws = []
    for micro in (micro for step in range(STEPS) for micro in made.step(step)):
        rows = made.documents(micro)
        assert [[document.record for document in row] for row in rows] == micro.samples
        assert {document.part for row in rows for document in row} == {micro.part}
        draws += [(micro.part, document.draw) for row in rows for document in row]
    assert len(set(draws)) == len(draws)


def test_grouping_by_length_holds_within_a_task() -> None:
    parts = {"a": ingredient(64, 1.0, batch=BATCH), "b": ingredient(64, 3.0, batch=BATCH)}
    made = Mixture(parts, Slots(BATCH, MICRO, 0, 1), 0)
    micros = [micro for step in range(STEPS) for micro in made.step(step)]
    fed = [[sample for micro in micros if micro.part == name for [sample] in micro.samples][:64] for name in parts]
    for samples in fed:
        assert sorted(samples) == list(range(64))
        batches = [sorted(samples[begin : begin + BATCH]) for begin in range(0, 64, BATCH)]
        assert all(batch[-1] - batch[0] <= 32 for batch in batches)  # of windows of four batches
