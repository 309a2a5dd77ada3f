"""The reference pass of DPO: record the starting model's log-probabilities before the first step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from distft.data.loader import Loader, RowLoader, Shuffle, Slots
from distft.data.records import Document
from distft.data.token_cache import Corpus
from distft.engine.deepspeed import Engine
from distft.errors import Preempted, UserError
from distft.process import distributed, pulse, stop_signals
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.run.folder import RunDir
from distft.tasks.dpo import Preference
from distft.tasks.dpo_reference import Entry, RecordedReference, pair_key, write
from distft.tasks.protocol import collated
from distft.training.datasets import Dataset, HeldOut

KEEP_SECONDS = 60.0  # between two times at which what was found is written down


def recall(run: RunDir, task: Any) -> None:
    """Give the task what was recorded for this run."""
    if isinstance(task, Preference) and task.reference is not None:
        task.reference = RecordedReference.read(run.reference)


def record_reference(
    run: RunDir,
    task: Any,
    engine: Engine,
    data: tuple[Dataset, Sequence[HeldOut]],
    step: int,
    base: str,
    ranks: Ranks,
    console: Console,
) -> None:
    """Record it, unless that was done, and give it to the task. Collective.

    Args:
        step: the run's; after the first the weights are not the starting model's any more.
        base: digest of the starting model.

    Raises:
        UserError: it is too late, for all pairs or for some that came later.
        Preempted: a stop was requested meanwhile.
    """
    if not isinstance(task, Preference) or task.reference is None:
        return
    train, held_out = data
    corpora = [train.corpus, *(held.corpus for held in held_out)]
    if not distributed.on_rank_0(ranks, "reference", lambda: is_recorded(run, corpora, base, step)):
        slots = Slots(ranks.world, 1, ranks.rank, ranks.world)
        loader = RowLoader(train.corpus, Shuffle(train.corpus, train.rows, 0, 1, fixed=True), slots, 0, len(train.rows))
        loaders: list[tuple[Loader, int]] = [(loader, math.ceil(len(train.rows) / ranks.world))]
        loaders += [(held.loader, held.steps) for held in held_out]
        Pass(run, task, engine, base, ranks).over(loaders, console)
    recall(run, task)


class Pass:
    """The pass over all pairs that are not recorded yet. What is recorded is written down now and then, and at a stop,
    so that the next attempt goes on from there."""

    def __init__(self, run: RunDir, task: Preference, engine: Engine, base: str, ranks: Ranks) -> None:
        self._run, self._task, self._engine, self._base, self._ranks = run, task, engine, base, ranks
        self._known = distributed.on_rank_0(ranks, "reference so far", lambda: list(recorded_entries(run, base)))
        self._places = {entry[0] for entry in self._known}
        self._new: list[Entry] = []  # this rank's, since all was written down last
        self._kept = time.monotonic()

    def over(self, loaders: Sequence[tuple[Loader, int]], console: Console) -> None:
        """Collective. Raises Preempted if a stop was requested meanwhile."""
        total, done = sum(steps for _, steps in loaders), 0
        with console.bar("the starting model's preferences: batch", total) as bar:
            for loader, steps in loaders:
                for number in range(steps):
                    pulse.at(f"the starting model's preferences, part {done + 1} of {total}")
                    self._batches([loader.documents(micro) for micro in loader.step(number)])
                    done += 1
                    bar.at(done, "")
        self._keep()

    def _batches(self, batches: Sequence[Sequence[Sequence[Document]]]) -> None:
        """This rank's batches of one step, unless all ranks know all pairs in theirs."""
        pairs = (pair for batch in batches for row in batch for pair in row)
        lacking = any(pair_key(pair) not in self._places for pair in pairs)
        due = self._ranks.first and time.monotonic() - self._kept > KEEP_SECONDS
        votes = distributed.sum_over_ranks([float(stop_signals.requested()), float(lacking), float(due)])
        stop, lacks, keep = (vote > 0 for vote in votes)
        if stop or keep:
            self._keep()
        if stop:
            stop_signals.check()
            raise Preempted("another rank received a stop request")
        if lacks:
            for batch in batches:
                micro = collated(self._task, batch, self._ranks.device)
                self._new += self._task.values(self._engine.model, micro)

    def _keep(self) -> None:
        """Write down what all ranks have found. Collective."""
        everyone = [json.loads(text) for text in distributed.gather_text(json.dumps(self._new))]
        if self._ranks.first:
            self._known += [tuple(entry) for rank in everyone for entry in rank]
            write(self._run.reference, self._known, self._base)
        self._new, self._kept = [], time.monotonic()
        distributed.barrier()


def recorded_entries(run: RunDir, base: str) -> Iterator[Entry]:
    """What an attempt before has recorded of this starting model; nothing if there is no such record."""
    try:
        known = RecordedReference.read(run.reference)
    except UserError:
        return
    if known.base == base:
        yield from known.entries()


def is_recorded(run: RunDir, corpora: Sequence[Corpus], base: str, step: int) -> bool:
    """Whether it is there, whole, of this model and of these pairs. Raises UserError where it is not, and too late."""
    try:
        if not run.reference.exists():
            raise UserError(
                f"{run.reference} is missing and cannot be computed again after the first step; start a new run"
            )
        known = RecordedReference.read(run.reference)
        if known.base != base:
            raise UserError(f"{run.reference} belongs to another starting model; start a new run")
        for corpus in corpora:
            if (new := known.lacks(corpus.document(index) for index in range(len(corpus)))) is not None:
                known.of(new)
    except UserError:
        if step > 0:
            raise
        return False
    return True
