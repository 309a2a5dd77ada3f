"""Encoding by several processes that share nothing but a store and a disk: the same bytes, whoever is lost."""

import errno
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore, TCPStore

from distft.data import encoding, parts
from distft.data.cache_writer import CacheWriter
from distft.data.crew import Crew, Offer, Told
from distft.data.sources import Source
from distft.data.token_cache import build_cache, help_build, left_out
from distft.errors import UserError
from distft.process.distributed import Ranks
from distft.training import filling
from tests.unit.data.test_encoding import Words, lines_in, lines_of, of_files, written

LINES = 400


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch):
    monkeypatch.setattr(encoding, "PART_BYTES", 1500)
    monkeypatch.setattr(encoding, "_EVERY", 0.002)
    monkeypatch.setattr(parts, "_POLL", 0.001)
    monkeypatch.setattr(parts, "_LOOK", 0.01)


@pytest.fixture
def whole(tmp_path, monkeypatch) -> Callable[[Source], dict[str, bytes]]:
    """What one process writes."""

    def make(source: Source) -> dict[str, bytes]:
        with monkeypatch.context() as patch:
            patch.setattr(encoding, "PART_BYTES", 1 << 30)
            return of_files(build_cache(source, Words(), str(tmp_path / "whole"), lambda: None, lambda done: None))

    return make


class Helpers:
    """Processes that stand for other nodes. Each encodes into the same cache, and has a log of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.folder, self.crew, self.pids = folder, Crew(self.store, "tokens/train"), []

    def start(self, source: Source, encoder: Words) -> int:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                self.help(source, encoder)
                code = 0
            finally:
                os._exit(code)
        self.pids.append(pid)
        return pid

    def help(self, source: Source, encoder: Words) -> None:
        crew = Crew(TCPStore("127.0.0.1", self.store.port, is_master=False), "tokens/train")
        while (offer := crew.offered()) is None:
            time.sleep(0.001)
        help_build(source, encoder, str(self.folder / "cache"), lambda: None, lambda done: None, offer, crew)

    def build(self, source: Source, encoder: Words, progress=lambda done: None) -> Path:
        return build_cache(
            source, encoder, str(self.folder / "cache"), lambda: None, progress, workers=1, crew=self.crew
        )

    def end(self) -> list[int]:
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self.pids]
        self.pids.clear()
        return codes


@pytest.fixture
def helpers(tmp_path):
    made = Helpers(tmp_path)
    yield made
    for pid in made.pids:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    made.end()


def slow(tmp_path: Path, name: str, seconds: float = 0.001) -> Words:
    return Words(tmp_path / name, seconds)


@pytest.mark.parametrize("bad", [pytest.param(0, marks=pytest.mark.long), 7])
def test_several_processes_write_what_one_writes(tmp_path, helpers, whole, bad):
    source = written(tmp_path, lines_of(LINES, bad), bad_budget=0.5 if bad else None)
    names, shown = ["leads", "helps", "helps too"], []
    for name in names[1:]:
        helpers.start(source, slow(tmp_path, name))
    folder = helpers.build(source, slow(tmp_path, names[0]), shown.append)
    assert helpers.end() == [0, 0]
    assert of_files(folder) == whole(source)
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]
    assert len(left_out(folder, source)) == (53 if bad else 0)
    encoded = [lines_in(tmp_path / name) for name in names]
    assert all(encoded)
    assert sorted(line for lines in encoded for line in lines) == sorted({line for lines in encoded for line in lines})
    assert shown == sorted(shown)
    assert shown[-1] == 369


@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=pytest.mark.long)])
def test_parts_of_a_process_that_is_lost_are_encoded_by_others(tmp_path, helpers, whole, monkeypatch, stopped):
    monkeypatch.setattr(parts, "SILENCE_SECONDS", 0.2)
    source, moved = written(tmp_path, lines_of(LINES)), []
    lost = helpers.start(source, slow(tmp_path, "lost", 0.01))

    def lose(records: int) -> None:
        moved.append(records)
        if len(moved) > 1 and len(lines_in(tmp_path / "lost")) > 3:
            os.killpg(lost, signal.SIGSTOP if stopped else signal.SIGKILL)

    folder = helpers.build(source, slow(tmp_path, "leads"), lose)
    assert of_files(folder) == whole(source)
    assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]
    assert lines_in(tmp_path / "lost")
    assert max(Counter(moved).values()) > 2  # to wait for it is no hang


@pytest.mark.long
def test_a_killed_leader_loses_no_part_of_anybody(tmp_path, helpers, whole, monkeypatch):
    monkeypatch.setattr(encoding, "_KEEP_EVERY", 0.01)
    source = written(tmp_path, lines_of(LINES))
    for name in ("helps", "leads"):
        run = helpers.start if name == "helps" else partial(fork_leader, helpers)
        run(source, slow(tmp_path, name))
    while min(len(lines_in(tmp_path / name)) for name in ("helps", "leads")) < 60:
        time.sleep(0.002)
    for pid in helpers.pids:
        os.killpg(pid, signal.SIGKILL)
    helpers.end()
    folder = Helpers(tmp_path).build(source, Words(tmp_path / "log"))
    assert of_files(folder) == whole(source)
    assert len(lines_in(tmp_path / "log")) < 369 - 60


def fork_leader(helpers: Helpers, source: Source, encoder: Words) -> None:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        helpers.build(source, encoder)
        os._exit(0)
    helpers.pids.append(pid)


@pytest.mark.long
def test_what_cannot_be_encoded_elsewhere_is_encoded_here(tmp_path, helpers, whole, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = written(tmp_path, lines_of(LINES))
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "add", full)
        helpers.start(source, slow(tmp_path, "helps"))
    folder = helpers.build(source, slow(tmp_path, "leads"))
    assert helpers.end() == [0]
    assert of_files(folder) == whole(source)
    assert lines_in(tmp_path / "helps")


def test_the_first_bad_record_is_named_whoever_meets_it(tmp_path, helpers):
    lines = lines_of(LINES)
    lines[395] = '{"text": "bad", "last": true}'
    lines[300] = '{"text": "bad"}'
    source = written(tmp_path, lines)
    helpers.start(source, slow(tmp_path, "helps"))
    with pytest.raises(UserError, match=r"a\.jsonl:301: is bad"):
        helpers.build(source, slow(tmp_path, "leads"))
    assert helpers.end() == [0]


def test_who_sees_other_data_or_another_disk_takes_no_part(tmp_path, monkeypatch):
    source = written(tmp_path, lines_of(100))
    monkeypatch.setattr(parts, "help_out", lambda *_: pytest.fail("it helps"))
    offers: list[Offer] = []

    def help_then(self: Crew, offer: Offer) -> None:
        offers.append(offer)
        for other in (replace(offer, key="other data"), replace(offer, file="offer-of-another-disk.json")):
            help_build(source, Words(), str(tmp_path / "cache"), lambda: None, lambda done: None, other, self)

    monkeypatch.setattr(Crew, "offer", help_then)
    build_cache(
        source, Words(), str(tmp_path / "cache"), lambda: None, lambda done: None, workers=1, crew=Crew(HashStore())
    )
    assert len(offers) == 1


def test_a_part_counts_when_all_of_it_is_seen(tmp_path, whole, monkeypatch):
    """A file system shows what another node has written somewhat later."""
    monkeypatch.setattr(parts, "SILENCE_SECONDS", 0.05)
    source, crew = written(tmp_path, lines_of(100)), Crew(HashStore())
    crew.take()
    crew.tell(0, Told(records=10))  # of which nothing is there yet
    encoder = Words(tmp_path / "log")
    folder = build_cache(
        source, encoder, str(tmp_path / "cache"), lambda: None, lambda done: None, workers=1, crew=crew
    )
    assert of_files(folder) == whole(source)


def test_one_rank_for_each_set_of_cores_of_a_node_helps(monkeypatch):
    cores, crew, offer = {0, 1}, Crew(HashStore()), Offer(0, "", "", "", 0, [0, 1])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)

    def helps(rank: int, local_rank: int) -> bool:
        ranks = Ranks(rank, local_rank, 8, torch.device("cpu"), crew.store)
        return filling.Helper(None, None, "train", ranks, crew)._has_free_cores(offer, crew)

    assert [helps(rank, rank % 4) for rank in (1, 2, 4, 5, 6)] == [False, False, True, False, False]
    cores = {2, 3}  # as of the other socket
    assert [helps(rank, rank % 4) for rank in (2, 3, 6, 7)] == [True, False, True, False]
