"""The feed: what a step is given does not depend on the thread that prepares it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from distft.data.loader import Census, MicroBatch
from distft.errors import UserError
from distft.process import pulse
from distft.training import feed
from distft.training.feed import Feed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Numbers:
    """A batch of 8 bytes for each row."""

    rows: torch.Tensor


class Rows:
    """A loader and a task: three micro-batches a step, of two rows each. Keeps what was read; `bad` cannot be."""

    def __init__(self, bad: int | None = None) -> None:
        self.read: list[int] = []
        self.bad = bad
        self.gate = threading.Event()
        self.gate.set()

    def step(self, index: int) -> Iterator[MicroBatch]:
        for number in range(3):
            first = 6 * index + 2 * number
            yield MicroBatch(number, [[first], [first + 1]], (first, first + 1))

    def census(self, index: int) -> Census:
        return Census(micro_batches=3, rows=6, documents=6, targets=60 + index)

    def foreseen(self, census: Census) -> dict[str, int]:
        return {"tokens": census.targets}

    def documents(self, micro: MicroBatch) -> Any:
        self.gate.wait()
        self.read.append(micro.places[0])
        if micro.places[0] == self.bad:
            raise UserError(f"row {self.bad} cannot be read")
        return micro.samples

    def collate(self, rows: Sequence[Sequence[int]], device: torch.device) -> Numbers:
        return Numbers(torch.tensor(rows, device=device).flatten())


def made(rows: Rows, steps: int = 100) -> Feed:
    return Feed(rows, rows, CPU, steps)  # type: ignore[arg-type]


def taken(fed: Feed, index: int) -> list[int]:
    return [int(row) for one in fed.step(index)[1] for row in one.batch.rows]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "feed"]


def settled(rows: Rows, count: int) -> list[int]:
    """What was read, once it is so many; a thread that reads more than it may shows here."""
    while len(rows.read) < count:
        time.sleep(0.01)
    time.sleep(0.05)
    return list(rows.read)


def test_each_step_is_given_its_own_rows_in_order() -> None:
    fed = made(Rows())
    assert [taken(fed, index) for index in range(4)] == [list(range(6 * i, 6 * i + 6)) for i in range(4)]
    totals, rows = fed.step(4)
    assert totals.counts == {"tokens": 64}
    assert totals.census == Rows().census(4)
    assert [one.last for one in rows] == [False, False, True]
    fed.close()


def test_one_step_is_prepared_ahead_and_not_two() -> None:
    rows = Rows()
    fed = made(rows)
    _, step = fed.step(0)
    next(step)
    assert settled(rows, 6) == [0, 2, 4, 6, 8, 10]
    list(step)
    assert settled(rows, 6) == [0, 2, 4, 6, 8, 10]
    assert taken(fed, 1) == [6, 7, 8, 9, 10, 11]
    assert settled(rows, 9) == list(range(0, 18, 2))
    fed.close()


def test_large_micro_batches_wait_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "AHEAD_BYTES", 17)  # one and a bit
    rows = Rows()
    fed = made(rows)
    _, step = fed.step(0)
    next(step)
    assert settled(rows, 3) == [0, 2, 4]
    next(step)
    assert settled(rows, 4) == [0, 2, 4, 6]
    assert len(list(step)) == 1
    fed.close()


def test_nothing_is_read_after_the_last_step() -> None:
    rows = Rows()
    fed = made(rows, steps=2)
    assert taken(fed, 0) + taken(fed, 1) == list(range(12))
    assert settled(rows, 6) == list(range(0, 12, 2))
    fed.close()
    assert threads() == []


def test_a_step_that_comes_out_of_order_begins_anew() -> None:
    """A run that went back to a checkpoint, or continues from one."""
    fed = made(Rows())
    assert taken(fed, 7) == list(range(42, 48))
    assert taken(fed, 3) == list(range(18, 24))
    assert taken(fed, 4) == list(range(24, 30))
    assert threads() == ["feed"]
    fed.close()


def test_an_error_is_raised_in_its_step_and_not_before() -> None:
    fed = made(Rows(bad=8))
    _, step = fed.step(0)
    assert len(list(step)) == 3
    _, step = fed.step(1)
    assert next(step).micro.places[0] == 6
    with pytest.raises(UserError, match=r"^row 8 cannot be read$"):
        next(step)
    fed.close()


def test_an_error_in_a_step_that_is_never_taken_is_nobodys() -> None:
    fed = made(Rows(bad=8))
    assert len(taken(fed, 0)) == 6
    fed.close()
    assert threads() == []


def test_closing_ends_the_thread_in_the_middle_of_its_work() -> None:
    rows = Rows()
    fed = made(rows)
    next(fed.step(0)[1])
    fed.close()
    assert threads() == []
    read = list(rows.read)
    assert settled(rows, len(read)) == read


def test_a_thread_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "END_SECONDS", 0.1)
    rows = Rows()
    fed = made(rows)
    assert taken(fed, 0) == list(range(6))
    settled(rows, 6)
    rows.gate.clear()
    assert taken(fed, 1) == list(range(6, 12))
    fed.close()
    rows.gate.set()


def test_the_place_names_the_data_of_the_step_that_waits_for_them() -> None:
    rows = Rows()
    rows.gate.clear()
    fed = made(rows)
    waiting = threading.Thread(target=lambda: taken(fed, 11))
    waiting.start()
    time.sleep(0.1)
    assert pulse.place() == "the data of step 12"
    rows.gate.set()
    waiting.join()
    fed.close()


def test_what_was_foreseen_must_be_what_there_was() -> None:
    feed.check(3, {"tokens": 12, "micro_batches": 2}, {"tokens": 12.0, "micro_batches": 2.0})
    with pytest.raises(UserError, match="index has 12 tokens in step 3, and its documents have 11"):
        feed.check(3, {"tokens": 12}, {"tokens": 11.0})
