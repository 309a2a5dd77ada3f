import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distft.data.records import Document
from distft.errors import Preempted
from distft.run.folder import RunDir
from distft.tasks.dpo_reference import PAIR_COLUMNS, Entry, RecordedReference, pair_key
from distft.training import reference_pass
from distft.training.reference_pass import SHARE, Batches, Pass

LONGEST, MICRO_ROWS = 300, 2


class Corpus(list[Document]):
    """As far as it is asked."""

    @property
    def sizes(self) -> Any:
        return np.array([document.size for document in self], np.int32)

    def document(self, index: int) -> Document:
        return self[index]


def pair(seed: int) -> Document:
    chance = np.random.default_rng(seed)
    sizes = chance.integers(2, LONGEST, 2) if seed else (LONGEST, 2)
    tokens = [chance.integers(0, 1000, size).astype(np.int32) for size in sizes]
    columns = dict(zip(PAIR_COLUMNS, (tokens[0], tokens[0] > 500, tokens[1], tokens[1] > 500), strict=True))
    return Document(columns, int(max(sizes)), 1)


TRAIN, HELD_OUT = Corpus(map(pair, range(150))), Corpus(map(pair, range(140, 160)))


class Company:
    """Its values depend on the pairs that share a micro-batch, as the last bits of a model's do."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> list[Document]:
        return [document for row in rows for document in row]

    def values(self, model: Any, batch: list[Document]) -> list[Entry]:
        self.batches.append([pair_key(document) for document in batch])
        last = hashlib.sha256(repr(self.batches[-1]).encode()).digest()[0] / 256
        return [(key, float(key % 1000), last) for key in self.batches[-1]]


class Bar:
    def at(self, number: int, text: str) -> None: ...
    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error: object) -> None: ...


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Company], int]]:
    """Runs the pass as each rank of some would, rank 0 last. Returns the ranks' tasks and how often one has asked."""

    def do(run: RunDir, world: int, corpora: Sequence[Corpus], stops_at: int | None = None) -> Any:
        sent: list[str] = []
        tasks = [Company() for _ in range(world)]
        votes = 0
        for rank in reversed(range(world)):
            asked = itertools.count()
            votes = 0

            def vote(values: Sequence[float], asked: Any = asked) -> list[float]:
                nonlocal votes
                votes += 1
                return [float(next(asked) == stops_at), 0.0, world * values[2]]

            def gather(text: str, rank: int = rank) -> list[str]:
                sent.insert(0, text)
                return sent if rank == 0 else [text]

            monkeypatch.setattr(reference_pass.distributed, "sum_over_ranks", vote)
            monkeypatch.setattr(reference_pass.distributed, "gather_text", gather)
            monkeypatch.setattr(reference_pass.distributed, "barrier", lambda: None)
            monkeypatch.setattr(reference_pass.distributed, "on_rank_0", lambda ranks, key, work: work())
            ranks: Any = SimpleNamespace(rank=rank, world=world, first=rank == 0, device=torch.device("cpu"))
            engine: Any = SimpleNamespace(model=None)
            console: Any = SimpleNamespace(bar=lambda title, total: Bar())
            task: Any = tasks[rank]
            one = Pass(run, task, engine, "base", ranks)
            batches: Any = Batches.of(corpora, MICRO_ROWS, 1)  # type: ignore[arg-type]
            if stops_at is None:
                one.over(batches, console)
            else:
                with pytest.raises(Preempted):
                    one.over(batches, console)
        return tasks, votes

    return do


def in_batches(corpora: Sequence[Corpus], width_step: int = 1) -> list[list[Document]]:
    found = Batches.of(corpora, MICRO_ROWS, width_step)  # type: ignore[arg-type]
    return [found.documents(number) for number in range(len(found.rows))]


def keys_of(corpora: Sequence[Corpus]) -> list[list[int]]:
    return [[pair_key(document) for document in batch] for batch in in_batches(corpora)]


@pytest.mark.parametrize(("width_step", "longest"), [(1, LONGEST), (64, 320)])
def test_each_pair_is_once_in_a_batch_that_training_could_bear(width_step: int, longest: int) -> None:
    batches = in_batches([TRAIN, HELD_OUT], width_step)
    keys = [pair_key(document) for batch in batches for document in batch]
    assert sorted(keys) == sorted({pair_key(document) for document in [*TRAIN, *HELD_OUT]})
    widths = [-(-max(document.size for document in batch) // width_step) * width_step for batch in batches]
    assert widths[0] == longest
    assert all(width * len(batch) <= SHARE * MICRO_ROWS * longest for width, batch in zip(widths, batches, strict=True))
    assert widths == sorted(widths, reverse=True)
    assert len(batches) < len(keys) / 3


def test_batches_follow_from_the_pairs_alone() -> None:
    assert keys_of([TRAIN, HELD_OUT]) == keys_of([HELD_OUT, Corpus(reversed(TRAIN))])


def test_the_pass_finds_the_same_by_any_number_of_ranks(tmp_path: Path, attempt: Any) -> None:
    found = []
    for world in (1, 2, 3, 50):
        run = RunDir(tmp_path / str(world))
        run.path.mkdir()
        tasks, _ = attempt(run, world, [TRAIN, HELD_OUT])
        assert len({len(task.batches) for task in tasks}) == 1  # as many forward passes on each
        found.append(run.reference.read_bytes())
    assert len(set(found)) == 1
    assert len(list(RecordedReference.read(run.reference).entries())) == 160


def test_a_pass_that_was_stopped_goes_on_where_it_was(tmp_path: Path, attempt: Any) -> None:
    whole, cut = RunDir(tmp_path / "whole"), RunDir(tmp_path / "cut")
    whole.path.mkdir()
    cut.path.mkdir()
    attempt(whole, 1, [TRAIN, HELD_OUT])
    first, _ = attempt(cut, 2, [TRAIN, HELD_OUT], stops_at=2)
    there = {key for key, *_ in RecordedReference.read(cut.reference).entries()}
    assert 0 < len(there) < 160
    second, _ = attempt(cut, 3, [TRAIN, HELD_OUT])
    computed = [{key for task in tasks for batch in task.batches for key in batch} for tasks in (first, second)]
    assert computed[0] == there
    assert not computed[0] & computed[1]
    assert cut.reference.read_bytes() == whole.reference.read_bytes()
    third, _ = attempt(cut, 2, [TRAIN, HELD_OUT])
    assert [task.batches for task in third] == [[], []]


def test_pairs_that_came_later_are_added(tmp_path: Path, attempt: Any) -> None:
    run = RunDir(tmp_path)
    attempt(run, 1, [TRAIN])
    [later], _ = attempt(run, 1, [TRAIN, HELD_OUT])
    assert sum(map(len, later.batches)) < 100
    known = RecordedReference.read(run.reference)
    assert known.lacks([*TRAIN, *HELD_OUT]) is None


def test_ranks_ask_each_other_about_once_a_second(
    tmp_path: Path, attempt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = len(keys_of([TRAIN]))
    quick = attempt(RunDir(tmp_path), 1, [TRAIN])[1]
    assert quick < rounds / 5  # two, four, eight rounds later
    clock = itertools.count()
    monkeypatch.setattr(reference_pass.time, "monotonic", lambda: next(clock) * 1.0)  # each look takes a second
    RunDir(tmp_path).reference.unlink()
    assert attempt(RunDir(tmp_path), 1, [TRAIN])[1] == rounds
