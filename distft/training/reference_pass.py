"""The reference pass of DPO: record the starting model's log-probabilities before the first step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from distft.data.loader import Loader, RowLoader, Shuffle, Slots
from distft.data.token_cache import Corpus
from distft.engine.deepspeed import Engine
from distft.errors import Preempted, UserError
from distft.process import distributed, pulse, stop_signals
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.run.folder import RunDir
from distft.tasks.dpo import Preference
from distft.tasks.dpo_reference import Entry, RecordedReference, write
from distft.training.datasets import Dataset, HeldOut


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
        entries = list(_entries(task, engine, loaders, ranks, console))
        everyone = [json.loads(text) for text in distributed.gather_text(json.dumps(entries))]
        if ranks.first:
            write(run.reference, (tuple(entry) for rank in everyone for entry in rank), base)
        distributed.barrier()
    recall(run, task)


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


def _entries(
    task: Preference, engine: Engine, loaders: Sequence[tuple[Loader, int]], ranks: Ranks, console: Console
) -> Iterator[Entry]:
    total, done = sum(steps for _, steps in loaders), 0
    with console.bar("the starting model's preferences: batch", total) as bar:
        for loader, steps in loaders:
            for number in range(steps):
                pulse.at(f"the starting model's preferences, part {done + 1} of {total}")
                for micro in loader.step(number):
                    yield from task.values(engine.model, task.collate(loader.documents(micro), ranks.device))
                done += 1
                bar.at(done, "")
                [stop] = distributed.sum_over_ranks([float(stop_signals.requested())])
                if stop:
                    stop_signals.check()
                    raise Preempted("another rank received a stop request")
