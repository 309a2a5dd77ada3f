"""The order of rows: a pure function of seed, step and rank, and the same whatever the number of ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distft.data.loader import Census, RowLoader, Shuffle, Slots
from distft.data.packing import Rows, one_per_row
from distft.data.records import Document
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.tasks.registry import specs_of
from distft.training.datasets import balances, grouping, length

BATCH, MICRO, ROWS = 8, 2, 13
# document i is of i + 1 tokens
CORPUS: Any = SimpleNamespace(
    document=lambda sample: Document({"tokens": np.full(sample + 1, sample)}, sample + 1, record=100 + sample),
    sizes=np.arange(1, 2 * ROWS + 1, dtype=np.int32),
    targets=np.arange(2 * ROWS, dtype=np.int32) ** 2,
    first_documents=np.array([0, ROWS, 2 * ROWS]),
)
PAIRS = Rows(np.arange(0, 2 * ROWS + 1, 2), np.arange(2 * ROWS)[::-1].copy())  # two documents in every row


def loader(
    rank: int = 0,
    world: int = 1,
    rows: Rows = PAIRS,
    seed: int = 0,
    total: int | None = None,
    batch: int | None = None,
    fixed: bool = False,
    sorts: bool = False,
    apart: bool = False,
) -> RowLoader:
    shuffle = Shuffle(CORPUS, rows, seed, batch, fixed, apart=apart)
    return RowLoader(CORPUS, shuffle, Slots(BATCH, MICRO, rank, world), seed, total, sorts)


def global_batch(step: int, world: int, **options: Any) -> list[list[int]]:
    """The rows of one step over all ranks, in the order of the micro-batches' indices."""
    micros = [micro for rank in range(world) for micro in loader(rank, world, **options).step(step)]
    micros.sort(key=lambda micro: micro.index)
    assert [micro.index for micro in micros] == list(range(BATCH // MICRO))
    return [row for micro in micros for row in micro.samples]


def sequence(**options: Any) -> Iterator[list[int]]:
    for step in itertools.count():
        yield from global_batch(step, world=1, **options)


@pytest.mark.parametrize("sorts", [False, True])
@pytest.mark.parametrize("total", [None, 19])
@pytest.mark.parametrize("world", [2, 4])
def test_every_number_of_ranks_feeds_the_same_rows(world: int, total: int | None, sorts: bool) -> None:
    for step in range(6):
        assert global_batch(step, world, total=total, sorts=sorts) == global_batch(step, 1, total=total, sorts=sorts)


@pytest.mark.parametrize("total", [None, 2 * BATCH + 3])
def test_rows_sorted_within_a_step_are_its_rows_the_widest_first(total: int | None) -> None:
    for step in range(6):
        plain, found = (global_batch(step, 1, total=total, sorts=sorts) for sorts in (False, True))
        assert sorted(found) == sorted(plain)
        widths = [max(row, default=-1) for row in found]  # document i is of i + 1 tokens; padding comes last
        assert widths == sorted(widths, reverse=True)
    assert found != plain or total is not None


@pytest.mark.parametrize("total", [None, 19])
def test_packed_rows_sorted_within_a_step_come_by_the_squared_lengths_of_their_documents(total: int | None) -> None:
    rows = Rows(np.array([0, 1, 4, 6, 7, *range(10, 27, 2)]), np.arange(2 * ROWS))  # 1 to 3 documents in each
    for step in range(4):
        plain, found = (
            global_batch(step, 1, rows=rows, total=total, sorts=sorts, apart=True) for sorts in (False, True)
        )
        costs = [sum((sample + 1) ** 2 for sample in row) for row in found]
        assert costs == sorted(costs, reverse=True)
        assert sorted(found) == sorted(plain)
        assert global_batch(step, 4, rows=rows, total=total, sorts=True, apart=True) == found


def test_a_sorted_row_keeps_the_draws_of_its_place() -> None:
    for world in (1, 2):
        assert sorted(draws(world, sorts=True)) == sorted(draws(1))


def test_a_document_knows_its_source() -> None:
    [micro, *_] = loader(0, 1).step(0)
    for ids, row in zip(micro.samples, loader(0, 1).documents(micro), strict=True):
        assert [document.source for document in row] == [int(sample >= ROWS) for sample in ids]


def test_micro_batches_of_a_time_are_neighbours_in_length() -> None:
    ranks = [list(loader(rank, 2, one_per_row(2 * ROWS), sorts=True).step(0)) for rank in range(2)]
    shortest = [min(row[0] for micro in at for row in micro.samples) for at in zip(*ranks, strict=True)]
    longest = [max(row[0] for micro in at for row in micro.samples) for at in zip(*ranks, strict=True)]
    assert shortest[0] > longest[1]


@pytest.mark.parametrize("rows", [one_per_row(ROWS), PAIRS, one_per_row(1), one_per_row(3)])
def test_each_epoch_feeds_every_row_once_in_an_order_of_its_own(rows: Rows) -> None:
    fed = list(itertools.islice(sequence(rows=rows), 4 * len(rows)))
    epochs = [fed[begin : begin + len(rows)] for begin in range(0, len(fed), len(rows))]
    every = sorted(rows.row(i).tolist() for i in range(len(rows)))
    assert all(sorted(epoch) == every for epoch in epochs)
    if len(rows) == ROWS:
        assert len({str(epoch) for epoch in epochs}) == len(epochs)
        assert epochs[0] != every


def test_seeds_differ_and_repeat() -> None:
    assert global_batch(3, 1, seed=1) == global_batch(3, 1, seed=1)
    assert global_batch(3, 1, seed=1) != global_batch(3, 1, seed=2)


def test_any_step_can_be_sought() -> None:
    walked = loader(1, 2)
    history = [list(walked.step(step)) for step in range(1001)]
    assert list(loader(1, 2).step(1000)) == history[1000]
    assert list(walked.step(17)) == history[17]  # and going back changes nothing


def test_seeking_far_costs_no_more_than_beginning() -> None:
    made = loader()
    orders: list[int] = []
    make_order = made._shuffle._make_order
    made._shuffle._order = lambda epoch: (orders.append(epoch), make_order(epoch))[1]  # type: ignore[assignment, func-returns-value]
    list(made.step(10**12))
    assert len(set(orders)) <= 2


def test_what_the_last_step_lacks_is_padding() -> None:
    total = 2 * BATCH + 3
    fed = [row for step in range(4) for row in global_batch(step, 2, total=total)]
    assert all(fed[:total])
    assert fed[total:] == [[]] * (4 * BATCH - total)
    assert fed[:total] == list(itertools.islice(sequence(), total))


@pytest.mark.parametrize("total", [None, 19])
@pytest.mark.parametrize("rows", [PAIRS, one_per_row(3)])
def test_the_census_is_of_what_all_ranks_are_fed(rows: Rows, total: int | None) -> None:
    """Steps within an epoch, over its end, of several epochs, the last one, and those that are padding alone."""
    for step in range(6):
        fed = global_batch(step, 2, rows=rows, total=total)
        samples = [sample for row in fed for sample in row]
        expected = Census(BATCH // MICRO, len(fed), len(samples), sum(sample**2 for sample in samples))
        assert loader(1, 2, rows, total=total).census(step) == expected


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_has_the_same_number_of_full_micro_batches(world: int) -> None:
    for rank in range(world):
        micros = list(loader(rank, world, total=3).step(0))  # also where only padding is left for a rank
        assert len(micros) == BATCH // MICRO // world
        assert all(len(micro.samples) == MICRO for micro in micros)


def test_without_shuffling_rows_come_as_they_are() -> None:
    fed = list(itertools.islice(sequence(rows=one_per_row(ROWS), fixed=True), 2 * ROWS))
    assert fed == [[sample] for sample in range(ROWS)] * 2


def test_without_shuffling_grouped_rows_come_by_their_longest_document() -> None:
    rows = Rows(np.array([0, 2, 3, 6]), np.array([1, 8, 4, 0, 2, 3]))  # the longest have 9, 5 and 4 tokens
    fed = list(itertools.islice(sequence(rows=rows, batch=2, fixed=True), 6))
    assert fed == [[0, 2, 3], [4], [1, 8]] * 2


@pytest.mark.parametrize("world", [1, 2, 4])
def test_grouped_rows_are_fed_once_an_epoch_on_any_number_of_ranks(world: int) -> None:
    grouped: dict[str, Any] = {"rows": one_per_row(2 * BATCH), "batch": BATCH}
    short, long = [[i] for i in range(BATCH)], [[i] for i in range(BATCH, 2 * BATCH)]
    for epoch in range(3):
        steps = [global_batch(step, world, **grouped) for step in (2 * epoch, 2 * epoch + 1)]
        assert sorted(map(sorted, steps)) == [short, long]
        assert steps == [global_batch(step, 1, **grouped) for step in (2 * epoch, 2 * epoch + 1)]


def test_documents_are_those_of_the_samples() -> None:
    made = loader(total=1)
    micro = next(made.step(0))
    first = micro.samples[0]
    found, empty = made.documents(micro)
    assert empty == []
    assert [document.size for document in found] == [sample + 1 for sample in first]
    assert [document.record for document in found] == [100 + sample for sample in first]
    assert [document["tokens"].tolist() for document in found] == [[sample] * (sample + 1) for sample in first]


def draws(world: int, seed: int = 0, steps: int = 8, sorts: bool = False) -> list[tuple[int, int]]:
    """(sample, draw) of all documents, in the order of the rows."""
    found = []
    for step in range(steps):
        loaders = [loader(rank, world, seed=seed, sorts=sorts) for rank in range(world)]
        micros = sorted(
            ((micro.places, one.documents(micro)) for one in loaders for micro in one.step(step)), key=lambda m: m[0]
        )
        found += [(d.record - 100, d.draw) for _, rows in micros for row in rows for d in row]
    return found


def test_a_draw_depends_on_the_place_in_the_run_and_not_on_the_ranks() -> None:
    alone = draws(1)
    assert alone == draws(2) == draws(4)
    assert all(0 <= draw < 2**63 for _, draw in alone)
    assert len({draw for _, draw in alone}) == len(alone)  # also where the same document comes again
    assert not {draw for _, draw in alone} & {draw for _, draw in draws(1, seed=1)}


@pytest.mark.parametrize(
    ("wanted", "padded", "packed"),
    [("step", "step", None), (True, "stream", "stream"), (False, None, None), (None, "stream", None)],
)
def test_what_stands_together_by_length(wanted: Any, padded: str | None, packed: str | None) -> None:
    def found(task: str) -> str | None:
        values = {"task": {"type": task}, "model": {"path": "/m"}, "train": {"steps": 1}}
        recipe = Recipe.model_validate({**values, "data": {"train": "/d", "group_by_length": wanted}})
        return grouping(recipe, specs_of(recipe)[None].model)

    assert (found("sequence-classification"), found("causal-lm")) == (padded, packed)


@pytest.mark.parametrize("balance", [True, False])
def test_packed_rows_are_sorted_unless_the_recipe_says_no(balance: bool) -> None:
    def found(task: str, **data: Any) -> bool:
        values = {"task": {"type": task}, "model": {"path": "/m"}, "train": {"steps": 1}}
        recipe = Recipe.model_validate({**values, "data": {"train": "/d", "balance": balance, **data}})
        return balances(recipe, specs_of(recipe)[None].model)

    assert (found("causal-lm"), found("causal-lm", packing=False)) == (balance, False)
    assert not found("sequence-classification", packing=True)  # padded, several to a row


def test_warm_up_must_leave_steps_of_the_epochs() -> None:
    values = {
        "model": {"path": "/m"},
        "data": {"train": "/d"},
        "train": {"epochs": 2.0, "global_batch": 16, "warmup": 10},
    }
    assert length(Recipe.model_validate(values), rows=100) == (13, 200)
    with pytest.raises(UserError, match=r"2 epochs of 64 rows are 8 steps; give warmup 0 to 7"):
        length(Recipe.model_validate(values), rows=64)
