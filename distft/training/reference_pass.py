"""The reference pass of DPO: record the starting model's log-probabilities before the first step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distft.data.corpus import Corpus
from distft.data.packing import Rows, bucket
from distft.data.records import Document
from distft.engine.deepspeed import Engine
from distft.errors import Preempted, UserError
from distft.process import distributed, pulse, stop_signals
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.run.folder import RunDir
from distft.tasks.dpo import Preference
from distft.tasks.dpo_reference import Entry, RecordedReference, pair_key, write
from distft.tasks.protocol import collated
from distft.tasks.shared.padding import WIDTH_STEP

KEEP_SECONDS = 60.0  # between two times at which what was found is written down
AGREE_SECONDS = 1.0  # between two times at which ranks ask each other whether to stop, about
SHARE = 2  # a forward pass alone bears so many times the tokens of one whose activations are kept for a backward pass


@dataclass(frozen=True, eq=False)
class Batches:
    """All pairs of some corpora, each once, in micro-batches of similar lengths.

    Which pairs share a micro-batch follows from what is in them, and with it the last bits of what is found for them:
    it is the same for any number of ranks, and after a stop.

    Attributes:
        keys: of the P pairs, uint64 [P], rising.
        places: where each is first found, counted through all corpora, int64 [P].
        rows: the micro-batches; their documents are indexes of pairs.
    """

    corpora: Sequence[Corpus]
    keys: npt.NDArray[np.uint64]
    places: npt.NDArray[np.int64]
    rows: Rows

    @classmethod
    def of(cls, corpora: Sequence[Corpus], micro_rows: int, width_step: int) -> Batches:
        """No micro-batch takes more memory than one of training with the longest pairs.

        Args:
            micro_rows: pairs that training feeds the model at once.
            width_step: rows are padded to a multiple of it.
        """
        found = []
        for corpus in corpora:
            for index in range(len(corpus)):
                found.append(pair_key(corpus.document(index)))
                pulse.moving()
        keys, places = np.unique(np.array(found, np.uint64), return_index=True)
        sizes = np.concatenate([corpus.sizes for corpus in corpora])[places]
        widths = -(-sizes // width_step) * width_step
        return cls(corpora, keys, places, bucket(widths, SHARE * micro_rows * int(widths.max(initial=0)), 0))

    def lacking(self, known: Sequence[int]) -> list[int]:
        """The micro-batches with a pair whose key is not among these."""
        new = ~np.isin(self.keys, np.array(known, np.uint64))
        return [number for number in range(len(self.rows)) if new[self.rows.row(number)].any()]

    def documents(self, number: int) -> list[Document]:
        return [self._document(int(self.places[pair])) for pair in self.rows.row(number)]

    def _document(self, place: int) -> Document:
        for corpus in self.corpora:
            if place < len(corpus):
                return corpus.document(place)
            place -= len(corpus)
        raise IndexError(place)


def recall(run: RunDir, task: Any) -> None:
    """Give the task what was recorded for this run."""
    if isinstance(task, Preference) and task.reference is not None:
        task.reference = RecordedReference.read(run.reference)


def record_reference(
    run: RunDir,
    task: Any,
    engine: Engine,
    corpora: Sequence[Corpus],
    micro_rows: int,
    step: int,
    base: str,
    ranks: Ranks,
    console: Console,
) -> None:
    """Record it, unless that was done, and give it to the task. Collective.

    Args:
        micro_rows: pairs that training feeds the model at once.
        step: the run's; after the first the weights are not the starting model's any more.
        base: digest of the starting model.

    Raises:
        UserError: it is too late, for all pairs or for some that came later.
        Preempted: a stop was requested meanwhile.
    """
    if not isinstance(task, Preference) or task.reference is None:
        return
    if not distributed.on_rank_0(ranks, "reference", lambda: is_recorded(run, corpora, base, step)):
        batches = Batches.of(corpora, micro_rows, WIDTH_STEP if ranks.device.type == "cuda" else 1)
        Pass(run, task, engine, base, ranks).over(batches, console)
    recall(run, task)


class Pass:
    """The pass over all pairs that are not recorded yet. What is recorded is written down now and then, and at a stop,
    so that the next attempt goes on from there.

    Each round gives every rank a micro-batch, or an empty one: weights that ranks share out (ZeRO 3) take as many
    forward passes on all of them. In between they ask each other seldom, by a number of rounds all have come to.
    """

    def __init__(self, run: RunDir, task: Preference, engine: Engine, base: str, ranks: Ranks) -> None:
        self._run, self._task, self._engine, self._base, self._ranks = run, task, engine, base, ranks
        self._known: list[Entry] = []  # on rank 0
        self._new: list[Entry] = []  # this rank's, since all was written down last
        self._kept = self._agreed = time.monotonic()

    def over(self, batches: Batches, console: Console) -> None:
        """Collective. Raises Preempted if a stop was requested meanwhile."""

        def look() -> list[int]:
            self._known = list(recorded_entries(self._run, self._base))
            return batches.lacking([key for key, *_ in self._known])

        lacking = distributed.on_rank_0(self._ranks, "reference so far", look)
        world, rounds = self._ranks.world, math.ceil(len(lacking) / self._ranks.world)
        next_vote, every = 0, 1
        with console.bar("the starting model's preferences: batch", rounds) as bar:
            for number in range(rounds):
                pulse.at(f"the starting model's preferences, part {number + 1} of {rounds}")
                if number == next_vote:
                    every = self._agree(every)
                    next_vote += every
                mine = lacking[number * world : (number + 1) * world][self._ranks.rank :][:1]
                self._add([document for batch in mine for document in batches.documents(batch)])
                bar.at(number + 1, "")
        self._keep()

    def _add(self, pairs: Sequence[Document]) -> None:
        micro = collated(self._task, [pairs], self._ranks.device)
        self._new += self._task.values(self._engine.model, micro)

    def _agree(self, every: int) -> int:
        """Stop, or write down, if a rank asks for it; `every` rounds have passed since. Returns the rounds until the
        next time, the same number on all ranks. Collective."""
        now = time.monotonic()
        due = self._ranks.first and now - self._kept > KEEP_SECONDS
        milliseconds = math.ceil(1000 * (now - self._agreed))  # a whole number, so that all ranks have the same sum
        stop, keep, passed = distributed.sum_over_ranks([float(stop_signals.requested()), float(due), milliseconds])
        if stop or keep:
            self._keep()
        if stop:
            stop_signals.check()
            raise Preempted("another rank received a stop request")
        self._agreed = time.monotonic()
        per_round = passed / self._ranks.world / every
        return max(1, min(2 * every, int(1000 * AGREE_SECONDS / max(per_round, 1e-3))))

    def _keep(self) -> None:
        """Write down what all ranks have found. Collective."""
        everyone = distributed.gather_text(json.dumps(self._new))
        if self._ranks.first:
            self._known += [tuple(entry) for text in everyone for entry in json.loads(text)]
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
