"""Work of one rank: it, and those that wait for it, show life as long as it gets on, and not longer."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore, PrefixStore

from distft.errors import Preempted
from distft.process import distributed, lone_work, pulse, stop_signals
from distft.process.distributed import Ranks, on_rank_0

PATIENCE_SECONDS = 30.0  # of a test, on a machine that is busy


def busy(ended: threading.Event) -> None:
    while not ended.is_set():
        hashlib.sha256(bytes(1 << 16)).digest()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lone_work, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(distributed, "LONGEST_POLL_SECONDS", 0.05)
    monkeypatch.setattr(distributed, "POLL_SECONDS", 0.05)


def reads(folder: Path) -> None:
    (folder / "data").write_bytes(bytes(8192))
    (folder / "data").read_bytes()


def computes(folder: Path) -> None:
    hashlib.sha256(bytes(1 << 16)).digest()


def has_a_thread_compute(folder: Path) -> None:
    """As a download or a tokenizer does."""
    ended = threading.Event()
    thread = threading.Thread(target=busy, args=(ended,))
    thread.start()
    time.sleep(0.5)
    ended.set()
    thread.join()


def counts(folder: Path) -> None:
    pulse.moving()
    time.sleep(0.01)


@pytest.mark.parametrize("kind", [reads, computes, has_a_thread_compute, counts])
def test_work_that_gets_on_moves(kind: Callable[[Path], None], tmp_path: Path, fast: None) -> None:
    told: list[int] = []
    before, ends = pulse.moves(), time.monotonic() + PATIENCE_SECONDS
    with lone_work.lone_work(told.append):
        while len(told) < 2 and time.monotonic() < ends:
            kind(tmp_path)
    assert len(told) >= 2
    assert told == sorted(set(told))
    assert told[-1] > before


def test_work_that_hangs_does_not_move_though_its_process_serves_others(fast: None) -> None:
    told: list[int] = []
    ended = threading.Event()
    server = threading.Thread(target=busy, args=(ended,))  # began before: it answers the ranks that wait
    server.start()
    try:
        with lone_work.lone_work(told.append):
            time.sleep(0.5)
    finally:
        ended.set()
        server.join()
    assert told == []


@pytest.mark.parametrize(
    ("name", "works"), [("distft-rank-0", True), ("pt_tcpstore_uv", False), ("gloo_tcp_loop", False)]
)
def test_of_threads_that_were_there_before_those_count_that_serve_nobody(
    name: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library's pool of threads works for who calls it; torch's threads answer the ranks that wait."""
    mine, other = threading.get_native_id(), -1
    used = {mine: (0, 0), other: (500, 0)}
    monkeypatch.setattr(lone_work, "_threads", lambda: set(used))
    monkeypatch.setattr(lone_work, "_used", used.__getitem__)
    monkeypatch.setattr(lone_work, "_name", {mine: "distft-rank-0", other: name}.__getitem__)
    activity = lone_work.Activity()
    assert not activity.went_on()
    used[other] = (600, 0)
    assert activity.went_on() is works


class Waiting:
    """A rank that waits for rank 0, in a thread, with a count of its own moves."""

    def __init__(self, rank: int, local_rank: int, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.moves: list[float] = []
        self.result: Any = None
        # rank 0 is in this process too, and its moves are not this rank's
        monkeypatch.setattr(distributed.pulse, "moving", lambda: self.moves.append(time.monotonic()))
        ranks = Ranks(rank, local_rank, 4, torch.device("cpu"), store)

        def wait() -> None:
            self.result = on_rank_0(ranks, "the data", lambda: pytest.fail("only rank 0 works"))

        self.thread = threading.Thread(target=wait)
        self.thread.start()

    def has_moved(self, times: int) -> None:
        ends = time.monotonic() + PATIENCE_SECONDS
        while len(self.moves) < times and time.monotonic() < ends:
            time.sleep(0.01)
        assert len(self.moves) >= times


@pytest.fixture
def store() -> Any:
    return PrefixStore("test", HashStore())


@pytest.fixture
def waiting(store: Any, monkeypatch: pytest.MonkeyPatch, fast: None) -> Iterator[Callable[[int, int], Waiting]]:
    made: list[Waiting] = []

    def wait(rank: int, local_rank: int) -> Waiting:
        made.append(Waiting(rank, local_rank, store, monkeypatch))
        return made[-1]

    yield wait
    store.set("the data", '"late"')
    for one in made:
        one.thread.join()


def test_a_rank_that_waits_moves_as_rank_0_does(waiting: Callable[[int, int], Waiting], store: Any) -> None:
    one = waiting(1, 1)  # on rank 0's node: without a head start
    time.sleep(0.2)
    assert one.moves == []
    for number in range(1, 6):
        store.set("the data, moves", str(number))
        one.has_moved(number)
    time.sleep(0.2)
    assert len(one.moves) == 5  # rank 0 hangs, and so does this
    store.set("the data", '["result"]')
    one.thread.join(PATIENCE_SECONDS)
    assert one.result == ["result"]


def test_rank_0s_node_is_to_name_it_first(
    waiting: Callable[[int, int], Waiting], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "HEAD_START_SECONDS", 0.5)
    one = waiting(2, 0)
    one.has_moved(1)
    time.sleep(1.0)
    moves = len(one.moves)
    time.sleep(0.2)
    assert len(one.moves) == moves  # its time is over


def test_rank_0_tells_the_others_that_it_moves(store: Any, tmp_path: Path, fast: None) -> None:
    def work() -> str:
        ends = time.monotonic() + PATIENCE_SECONDS
        while not store.check(["the model, moves"]) and time.monotonic() < ends:
            computes(tmp_path)
        return "done"

    before = pulse.moves()
    assert on_rank_0(Ranks(0, 0, 2, torch.device("cpu"), store), "the model", work) == "done"
    assert int(store.get("the model, moves")) > before
    assert store.get("the model") == b'"done"'


def test_a_rank_that_waits_can_be_stopped(store: Any, fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_signals, "_received", [(stop_signals.SIGNALS[0], 0.0)])
    with pytest.raises(Preempted):
        on_rank_0(Ranks(1, 1, 2, torch.device("cpu"), store), "anything", lambda: None)


def test_a_stop_loses_no_steps_to_a_wait_between_two_of_them(
    store: Any, fast: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_signals, "_received", [(stop_signals.SIGNALS[0], 0.0)])
    scoring = threading.Timer(0.2, store.set, ("the scores", "[0.5]"))
    scoring.start()
    assert on_rank_0(Ranks(1, 1, 2, torch.device("cpu"), store), "the scores", lambda: None, may_stop=False) == [0.5]
    scoring.join()


def test_a_thread_that_ends_takes_nothing_from_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    activity, mine, other = lone_work.Activity(), threading.get_native_id(), -1
    used = {mine: (0, 0), other: (500, 1 << 30)}
    monkeypatch.setattr(lone_work, "_threads", lambda: {mine, other})
    monkeypatch.setattr(lone_work, "_used", lambda thread: used[thread])
    assert activity.went_on()
    used.update({mine: (50, 0), other: (0, 0)})
    assert activity.went_on()
