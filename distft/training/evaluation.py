"""Evaluation on held-out data during a run: scores, best checkpoint, early stopping."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import torch
import xxhash

from distft.checkpoint.best import note_scores
from distft.data.records import Document
from distft.metrics.scores import Report
from distft.process import distributed, pulse
from distft.run.profile import EVALUATION
from distft.tasks.multi_task import task_of, view_of
from distft.tasks.protocol import Outcome, Task, collated
from distft.training.datasets import Dataset, HeldOut
from distft.training.session import Session

_numbers = itertools.count()


def evaluate_if_due(session: Session) -> bool:
    """Evaluate where the recipe asks for it and it was not done yet. Returns whether the ranks agreed to stop in it."""
    now = session.progress.step
    every = session.recipe.train.eval_every
    begin = now == 0 and every is not None  # where the run starts from
    if not session.held_out or (now > 0 and session.progress.last_eval == now):
        return False
    if not (begin or is_due(session, every)):
        return False
    with session.profile.phase(EVALUATION):
        scores = evaluate(session)
    session.meter.restart()
    if scores is None:
        return True
    session.progress = note_scores(session.progress, session.recipe.train, scores)
    if (best := session.recipe.train.best) is not None and best not in scores:
        session.console.say(
            f"step {now}: {best} (train.best) cannot be computed from these predictions and held-out data"
        )
    session.track.log({"step": now, **{f"eval_{name}": s for name, s in scores.items()}, "attempt": session.attempt})
    shown = " · ".join(f"{name} {score:.4f}" for name, score in scores.items() if name != "loss")
    session.console.say(f"step {now}: held-out loss {scores.get('loss', math.nan):.4f}{shown and ' · '}{shown}")
    return False


def is_due(session: Session, every: int | None) -> bool:
    now = session.progress.step
    return now > 0 and (now == session.total_steps or (every is not None and now % every == 0))


def ended_early(session: Session) -> bool:
    """Whether the chosen score failed to improve for as long as the recipe bears it."""
    patience = session.recipe.train.patience
    return patience is not None and session.progress.stale >= patience


@torch.no_grad()
def evaluate(session: Session) -> dict[str, float] | None:
    """Scores of the held-out data; None if the ranks agreed to stop before the end. Collective.

    They are computed from what was predicted for each record, in the order of the records, so that they do not
    depend on the number of ranks.
    """
    model = session.engine.model
    model.eval()
    mine: list[list[tuple[int, int, Outcome]]] = []
    for held in session.held_out:
        outcomes = predict_held_out(session, held)
        if outcomes is None:
            model.train()
            return None
        mine.append(outcomes)
    model.train()
    gathered = distributed.gather_text(json.dumps(mine))

    def score() -> dict[str, float]:
        everyone = [json.loads(text) for text in gathered]
        found: dict[str, float] = {}
        of_sources: dict[str, float] = {}
        for index, held in enumerate(session.held_out):
            in_order = sorted(itertools.chain(*(rank[index] for rank in everyone)), key=itemgetter(0))
            report = score_records(task_of(session.task, held.part), (rest for _, *rest in in_order))
            prefix = f"{held.part}." if held.part else ""
            found.update({f"{prefix}{name}": s for name, s in report.scores.items()})
            of_sources.update({f"source.{prefix}{name}.loss": s for name, s in source_losses(held.data, in_order)})
        losses = [value for name, value in found.items() if name.rpartition(".")[2] == "loss"]
        found = {"loss": sum(losses) / len(losses), **found} if losses else found
        return {**found, **of_sources}

    scores: dict[str, float] = distributed.on_rank_0(session.ranks, f"scores {next(_numbers)}", score, may_stop=False)
    return scores


def source_losses(data: Dataset, outcomes: Sequence[tuple[int, int, Outcome]]) -> Iterator[tuple[str, float]]:
    """The loss per target of each of several sources; of (index of the document, of its record, its outcome)."""
    firsts = data.corpus.first_documents
    for number, source in enumerate(data.sources):
        own = [outcome for index, _, outcome in outcomes if firsts[number] <= index < firsts[number + 1]]
        if targets := sum(outcome.get("targets", 0) for outcome in own):
            yield source, math.fsum(outcome["loss"] for outcome in own if "loss" in outcome) / targets


def predict_held_out(session: Session, held: HeldOut) -> list[tuple[int, int, Outcome]] | None:
    """(index of a document, of its record, its outcome) of this rank; None if the ranks agreed to stop."""
    task = task_of(session.task, held.part)
    model = view_of(session.engine.model, held.part)
    found: list[tuple[int, int, Outcome]] = []
    for number in range(held.steps):
        pulse.at(f"the evaluation, part {number + 1} of {held.steps}")
        for micro in held.loader.step(number):
            rows = held.loader.documents(micro)
            records = [document.record for row in rows for document in row]
            rows = [[with_fixed_draw(document) for document in row] for row in rows]
            outcomes = task.predict(model, collated(task, rows, session.ranks.device))
            found += zip(itertools.chain(*micro.samples), records, outcomes, strict=True)
        [stop] = distributed.sum_over_ranks([float(session.is_to_stop())])
        if stop:
            return None
    return found


def with_fixed_draw(document: Document) -> Document:
    """With a draw that depends on its content alone: what is random in a batch is the same whoever evaluates."""
    content = b"".join(document[name].tobytes() for name in sorted(document.columns))
    return replace(document, draw=xxhash.xxh3_64_intdigest(content) >> 1)


def score_records(task: Task[Any], outcomes: Iterable[Sequence[Any]]) -> Report:
    """Scores over records, from (index of the record, outcome of a document); those of a record in their order."""
    by_record: dict[int, list[Outcome]] = {}
    for record, outcome in outcomes:
        by_record.setdefault(record, []).append(outcome)
    return report_of(task, [task.join(by_record[record]) for record in sorted(by_record)])


def report_of(task: Task[Any], outcomes: Sequence[Outcome]) -> Report:
    """The task's scores and the loss a target, where the truth is known."""
    report = task.score(outcomes)
    targets = sum(outcome.get("targets", 0) for outcome in outcomes)
    if not targets:
        return report
    loss = math.fsum(outcome["loss"] for outcome in outcomes if "loss" in outcome) / targets
    return replace(report, scores={"loss": loss, **report.scores})
