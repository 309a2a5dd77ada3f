"""What follows from scores: the best checkpoint, an early end. And scores are of records, whatever the ranks."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distft.checkpoint.best import note_scores
from distft.checkpoint.state import Progress
from distft.data.loader import MicroBatch, RowLoader, Shuffle, Slots
from distft.data.packing import one_per_row
from distft.data.records import Document
from distft.metrics.scores import Report
from distft.recipe.schema import Recipe, Train
from distft.recipe.tasks import CausalLM, SequenceClassification
from distft.tasks import causal_lm, sequence_classification
from distft.training import evaluation
from distft.training.datasets import Dataset, HeldOut, held_out
from distft.training.evaluation import ended_early, is_due, report_of, score_records


def train(**given: Any) -> Train:
    return Train.model_validate({"steps": 100, "eval_every": 1, **given})


def walked(scores: list[float | None], **given: Any) -> list[Progress]:
    """The progress after each of some evaluations, one a step; None: this score is not among them."""
    settings = train(**given)
    progress = Progress(step=0, next_row=0, useful_tokens=0, last_eval=0)
    found = []
    for score in scores:
        progress = evaluation.replace(progress, step=progress.step + 1)
        named = {"loss": 1.0} if score is None else {"loss": 1.0, str(settings.best): score}
        progress = note_scores(progress, settings, named)
        found.append(progress)
    return found


def test_without_a_score_to_look_at_only_the_evaluation_is_noted() -> None:
    [one, two] = walked([1.0, 0.5])
    assert [one.last_eval, two.last_eval] == [1, 2]
    assert (two.best, two.best_step, two.stale) == (None, 0, 0)


@pytest.mark.parametrize("best", ["accuracy", "f1", "ner.f1", "bleu", "pearson"])
def test_higher_is_better(best: str) -> None:
    found = walked([0.5, 0.4, 0.6, 0.6, 0.1], best=best)
    assert [(one.best, one.best_step, one.stale) for one in found] == [
        (0.5, 1, 0),
        (0.5, 1, 1),
        (0.6, 3, 0),
        (0.6, 3, 1),  # as good is no improvement
        (0.6, 3, 2),
    ]
    assert [one.last_eval for one in found] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("best", ["loss", "perplexity", "wer", "cer", "mse", "mae", "lm.perplexity"])
def test_lower_is_better(best: str) -> None:
    found = walked([0.5, 0.6, 0.4, 0.4, 0.3], best=best)
    assert [(one.best, one.best_step, one.stale) for one in found] == [
        (0.5, 1, 0),
        (0.5, 1, 1),
        (0.4, 3, 0),
        (0.4, 3, 1),
        (0.3, 5, 0),
    ]


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("best", ["loss", "accuracy"])
def test_what_is_no_number_is_never_the_best(best: str, nothing: float | None) -> None:
    found = walked([nothing, 0.5, nothing], best=best)
    if best == "loss" and nothing is None:  # there it is always
        return
    assert [(one.best, one.best_step, one.stale) for one in found] == [(None, 0, 1), (0.5, 2, 0), (0.5, 2, 1)]


def test_what_the_run_starts_from_is_no_candidate() -> None:
    start = Progress(step=0, next_row=0, useful_tokens=0, last_eval=0)
    assert note_scores(start, train(best="loss"), {"loss": 0.0}) == start
    first = note_scores(evaluation.replace(start, step=1), train(best="loss"), {"loss": 9.0})
    assert (first.best, first.best_step) == (9.0, 1)


def session(progress: Progress, total: int = 100, **given: Any) -> Any:
    return SimpleNamespace(progress=progress, recipe=SimpleNamespace(train=train(**given)), total_steps=total)


def test_patience_counts_evaluations_without_an_improvement() -> None:
    found = walked([0.5, 0.6, 0.7, 0.4, 0.5, 0.6, 0.7], best="loss", patience=3)
    assert [ended_early(session(one, best="loss", patience=3)) for one in found] == [False] * 6 + [True]
    assert [ended_early(session(one, best="loss", patience=1)) for one in found][:3] == [False, True, True]
    assert not any(ended_early(session(one, best="loss")) for one in found)


@pytest.mark.parametrize(("every", "due"), [(None, [10]), (3, [3, 6, 9, 10]), (5, [5, 10]), (1, [*range(1, 11)])])
def test_evaluations_are_due_at_the_end_and_every_so_often(every: int | None, due: list[int]) -> None:
    steps = [Progress(step=step, next_row=0, useful_tokens=0, last_eval=0) for step in range(11)]
    assert [one.step for one in steps if is_due(session(one, 10), every)] == due


# --- scores of records ------------------------------------------------------------------------------------------------


class Words:
    """A task whose score is what it was given."""

    def score(self, outcomes: Any) -> Report:
        return Report({"words": len(outcomes), "order": float("".join(str(one["id"]) for one in outcomes) or 0)})

    def join(self, parts: Any) -> dict[str, Any]:
        whole = {"id": parts[0]["id"], "parts": [part["part"] for part in parts]}
        if "loss" in parts[0]:
            whole |= {"loss": sum(p["loss"] for p in parts), "targets": sum(p["targets"] for p in parts)}
        return whole


def test_scores_are_of_records_in_their_order_whoever_predicted_them() -> None:
    task: Any = Words()
    seen: list[Any] = []
    task.join = lambda parts: seen.append(parts) or Words.join(task, parts)
    outcomes = [(record, {"id": record, "part": part}) for record in (1, 2, 3) for part in (0, 1)]
    for order in itertools.permutations(range(3)):
        mixed = [outcomes[2 * record + part] for part in (0, 1) for record in order]
        seen.clear()
        assert score_records(task, mixed).scores == {"words": 3, "order": 123.0}
        assert [[part["part"] for part in parts] for parts in seen] == [[0, 1]] * 3


def test_the_loss_is_one_of_targets_and_comes_first() -> None:
    outcomes = [{"id": 1, "loss": 3.0, "targets": 2}, {"id": 2, "loss": 1.0, "targets": 6}]
    report = report_of(Words(), outcomes)  # type: ignore[arg-type]
    assert list(report.scores.items()) == [("loss", 0.5), ("words", 2), ("order", 12.0)]
    assert "loss" not in report_of(Words(), [{"id": 1}]).scores  # type: ignore[arg-type]


# --- which micro-batches are evaluated --------------------------------------------------------------------------------

CLASSES = sequence_classification.spec(SequenceClassification(type="sequence-classification"), {}).model


def evaluated(rows: int, micro: int, world: int, spec: Any) -> list[tuple[int, list[list[int]]]]:
    """(first row, samples) of all micro-batches over all ranks, in the order of the rows."""
    recipe = Recipe.model_validate(
        {
            "model": {"path": "m"},
            "data": {"train": "d"},
            "train": {"steps": 1, "micro_batch": micro, "global_batch": 4 * micro},
        }
    )
    sizes = np.random.default_rng(0).permutation(rows).astype(np.int32) + 1
    corpus: Any = SimpleNamespace(
        sizes=sizes, first_documents=np.array([0, rows]), document=lambda i: Document({}, int(sizes[i]), record=i)
    )
    found: list[MicroBatch] = []
    steps = set()
    for rank in range(world):
        ranks: Any = SimpleNamespace(rank=rank, world=world)
        data = Dataset(corpus, [one_per_row(rows)], "")
        held = held_out(recipe, spec, None, data, ranks)
        steps.add(held.steps)
        found += [one for step in range(held.steps) for one in held.loader.step(step)]
    assert len(steps) == 1  # every rank predicts as often as the others
    assert len(found) == steps.pop() * world
    return sorted((one.places, one.samples) for one in found)


@pytest.mark.parametrize("spec", [causal_lm.spec(CausalLM(), {}).model, CLASSES], ids=["packed", "padded"])
@pytest.mark.parametrize(("rows", "micro"), [(13, 2), (16, 4), (1, 4)])
def test_every_record_is_evaluated_once_in_the_same_company_on_any_number_of_ranks(
    rows: int, micro: int, spec: Any
) -> None:
    alone = evaluated(rows, micro, 1, spec)
    fed = [sample for _, samples in alone for row in samples for sample in row]
    assert sorted(fed) == list(range(rows))
    sizes = np.random.default_rng(0).permutation(rows) + 1
    assert fed == (np.argsort(sizes, kind="stable").tolist() if spec is CLASSES else list(range(rows)))
    for world in (2, 3, 4):
        filled = [one for one in evaluated(rows, micro, world, spec) if any(one[1])]
        assert filled == [one for one in alone if any(one[1])]


class Sizes:
    """A task that predicts how many documents share a micro-batch, where it was asked to."""

    def collate(self, rows: Any, device: Any) -> Any:
        return [document for row in rows for document in row]

    def predict(self, model: Any, batch: Any) -> list[dict[str, Any]]:
        assert not torch.is_grad_enabled()
        assert not model.training
        return [{"id": document.record, "part": 0, "loss": 0.5 * document.record, "targets": 1} for document in batch]

    score = Words.score
    join = Words.join


@pytest.mark.parametrize("stopped", [False, True])
def test_an_evaluation_by_two_ranks_is_that_of_one(monkeypatch: pytest.MonkeyPatch, stopped: bool) -> None:
    """The other rank's outcomes are those that it would send."""
    corpus: Any = SimpleNamespace(
        sizes=np.ones(5, np.int32),
        first_documents=np.array([0, 5]),
        document=lambda i: Document({}, 1, record=4 - i),
        __len__=lambda: 5,
    )
    model = torch.nn.Linear(1, 1)

    def of(rank: int, world: int) -> Any:
        loader = RowLoader(
            corpus, Shuffle(corpus, one_per_row(5), 0, fixed=True), Slots(2 * world, 2, rank, world), 0, 5
        )
        ranks: Any = SimpleNamespace(rank=rank, world=world, device=torch.device("cpu"))
        data: Any = SimpleNamespace(corpus=corpus, sources=())
        held = [HeldOut(None, data, loader, math.ceil(5 / (2 * world)))]
        engine, stop = SimpleNamespace(model=model), lambda: stopped
        return SimpleNamespace(held_out=held, task=Sizes(), engine=engine, ranks=ranks, is_to_stop=stop)

    sent: list[str] = []
    monkeypatch.setattr(evaluation.distributed, "sum_over_ranks", lambda values: [float(stopped)])
    monkeypatch.setattr(evaluation.distributed, "gather_text", lambda text: (sent.append(text), sent)[1])

    def on_rank_0(ranks: Any, key: str, work: Any, may_stop: bool) -> Any:
        assert not may_stop  # there may be steps to save
        return work()

    monkeypatch.setattr(evaluation.distributed, "on_rank_0", on_rank_0)
    alone = evaluation.evaluate(of(0, 1))
    sent.clear()
    evaluation.evaluate(of(1, 2))  # comes first into the list: the order of ranks does not matter
    together = evaluation.evaluate(of(0, 2))
    assert alone == together == (None if stopped else {"loss": 1.0, "words": 5, "order": 1234.0})
    assert model.training
