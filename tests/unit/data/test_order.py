"""Rows of similar sizes stand together, and every epoch still has each of them once, in an order of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distft.data import order
from distft.data.order import grouped

FUZZ = settings(deadline=None, max_examples=60)
sizes_of = st.lists(st.integers(1, 500), max_size=300).map(lambda sizes: np.array(sizes, np.int32))


@FUZZ
@given(sizes=sizes_of, batch=st.integers(1, 12), seed=st.integers(-5, 5), epoch=st.integers(0, 3))
def test_grouped_is_a_permutation(sizes: np.ndarray, batch: int, seed: int, epoch: int) -> None:
    found = grouped(seed, epoch, sizes, batch)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(len(sizes)))
    assert found.tolist() == grouped(seed, epoch, sizes.copy(), batch).tolist()


@pytest.mark.parametrize(("rows", "batch"), [(4000, 8), (4003, 8), (997, 3), (1300, 16)])
def test_a_batch_holds_rows_of_similar_sizes(rows: int, batch: int) -> None:
    """Padded to the longest of each batch, they take nearly what they are; in any order, far more."""
    sizes = np.random.default_rng(0).geometric(0.01, rows).astype(np.int32)

    def padding(found: np.ndarray) -> float:
        batches = [sizes[found[begin : begin + batch]] for begin in range(0, rows, batch)]
        return sum(float(one.max()) * len(one) for one in batches) / float(sizes.sum())

    assert padding(grouped(0, 0, sizes, batch)) < 1.35
    assert padding(order.order(0, 0, rows)) > 1.5


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    sizes = np.random.default_rng(0).integers(1, 500, 400).astype(np.int32)
    orders = [grouped(seed, epoch, sizes, 8).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({str(one) for one in orders}) == len(orders)
    ordered = np.argsort(sizes, kind="stable").tolist()
    assert all(one[:8] != ordered[:8] for one in orders)  # the short ones do not come first


@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_steps_hold_rows_of_similar_sizes_where_epochs_are_no_whole_number_of_them(epoch: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 500, 1003).astype(np.int32)
    begin = -epoch * 1003 % 32  # the stream is cut every 32 rows
    found = sizes[grouped(0, epoch, sizes, 32)][begin:]
    spread = [int(np.ptp(found[at : at + 32])) for at in range(0, len(found) - 31, 32)]
    assert np.median(spread) < 80


def test_rows_meet_others_in_another_epoch_where_there_are_several_windows() -> None:
    sizes = np.random.default_rng(0).integers(1, 500, 8000).astype(np.int32)
    first, second = (grouped(0, epoch, sizes, 8) for epoch in (0, 1))
    batches = [{frozenset(one[begin : begin + 8].tolist()) for begin in range(0, 8000, 8)} for one in (first, second)]
    assert len(batches[0] & batches[1]) < 10
    begins = [sizes[one[:400]].mean() for one in (first, second)]  # a window is a fair sample of all
    assert all(abs(mean - sizes.mean()) < 40 for mean in begins)


@pytest.mark.parametrize("rows", [5, 8, 13, 8 * 50 + 3])
def test_a_last_batch_that_is_not_full_stays_the_last(rows: int) -> None:
    """It takes what its window has left: the longest rows. Here it is one window, but for the most rows."""
    sizes = np.random.default_rng(1).permutation(rows).astype(np.int32) + 1
    found = grouped(0, 0, sizes, 8)
    rest = rows % 8
    whole = [sizes[found[begin : begin + 8]] for begin in range(0, rows - rest, 8)]
    assert np.median([np.ptp(batch) for batch in whole] or [0]) <= 60
    if rows < 8 * 50:
        assert sizes[found[rows - rest :]].tolist() == list(range(rows - rest + 1, rows + 1))


@FUZZ
@given(sizes=st.lists(st.just(7), max_size=60), batch=st.integers(1, 9))
def test_of_one_size_it_is_as_good_as_any_order(sizes: list[int], batch: int) -> None:
    found = grouped(3, 1, np.array(sizes, np.int32), batch)
    assert sorted(found.tolist()) == list(range(len(sizes)))


def test_draws_are_numbers_of_63_bits_by_seed_and_position() -> None:
    found = [one for seed in (-1, 0, 1) for one in order.draws(seed, [*range(1000), 10**15])]
    assert len(set(found)) == len(found)
    assert all(0 <= one < 2**63 for one in found)
    assert 0.45 < sum(one > 2**62 for one in found) / len(found) < 0.55
    assert order.draws(7, [12, 3]) == [*order.draws(7, [12]), *order.draws(7, [3])]


def test_grouped_and_draws_are_pinned() -> None:
    """These values are part of what makes a run repeatable: they must never change."""
    sizes = np.array([5, 3, 3, 8, 2, 2, 7, 1, 4, 6, 9], np.int32)
    assert grouped(0, 0, sizes, 3).tolist() == [0, 9, 6, 7, 4, 5, 2, 1, 8, 3, 10]
    assert grouped(1234567, 3, sizes, 2).tolist() == [9, 1, 8, 7, 4, 0, 6, 5, 2, 3, 10]
    found = [*order.draws(0, [0]), *order.draws(1234567, [3]), *order.draws(-1, [10**9])]
    assert found == [6514504133438201533, 8949430044931271265, 4623551975196246055]
