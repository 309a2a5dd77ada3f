"""Bytes of an evaluation beside those of the product's own prediction, counted on tensors without memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from distft.plan.evaluation import Writing, evaluation
from distft.plan.loss import Batch, Computing
from distft.plan.operations import Numbers
from distft.tasks.causal_lm import Causal, CausalBatch
from tests.models import shapes
from tests.models.live_bytes import LiveBytes, fake, without_memory
from tests.models.real_models import How, Made, adapted, architecture_of, built

pytestmark = pytest.mark.filterwarnings("ignore")  # what peft and transformers warn about is theirs

ROWS, TOKENS = 2, 512


def llama(vocabulary: int) -> Made:
    return shapes.llama(512, 1792, 8, 2, 64, layers=3, vocabulary=vocabulary)


def counted(model: Any, given: CausalBatch) -> int:
    """The same operations as `Causal.predict` and `score_tokens` run, which fake tensors cannot follow to the end."""
    task, counter = Causal(model.forward, flatten=False), LiveBytes(model)
    for tensor in vars(given).values():
        if isinstance(tensor, torch.Tensor):
            counter.note(tensor)
    with torch.no_grad(), counter:
        counter.mark("evaluation")
        logits = task.logits(model, given).flatten(0, 1)[given.at].float()
        functional.cross_entropy(logits, given.targets, reduction="none")
    return counter.peaks()["evaluation"][0]


def peaks(made: Made, how: How, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Bytes predicted, and counted."""
    monkeypatch.setattr(
        "transformers.masking_utils.find_packed_sequence_indices",
        lambda positions: torch.zeros_like(positions) if how.packed else None,
    )
    model, places = built(made, how), ROWS * (TOKENS - 1)
    batch = Batch(ROWS, TOKENS, places, places, mask=how.packed)
    computing = Computing(Numbers(how.dtype.itemsize, "cpu"), how.attention, how.update, checkpointing=True)
    expected = sum(evaluation(architecture_of(model, made), batch, computing).values())
    model = adapted(model, how).eval()
    with fake():
        without_memory(model)
        ids, at = torch.zeros(ROWS, TOKENS, dtype=torch.long), torch.zeros(places, dtype=torch.long)
        kept, real = torch.zeros(TOKENS - 1, dtype=torch.long), torch.zeros(ROWS * TOKENS, dtype=torch.bool)
        given = CausalBatch(ids, torch.zeros_like(ids), kept, at, at.clone(), at.clone(), real, 0, ())
        return expected, counted(model, given)


@pytest.mark.parametrize("vocabulary", [500, 32000])  # layers are the most, or logits
@pytest.mark.parametrize(
    "how", [How(), How(rank=16, adapter_dropout=0.1, packed=True), How(dtype=torch.float32, packed=True)]
)
def test_an_evaluation_needs_what_was_counted(how: How, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, found = peaks(llama(vocabulary), how, monkeypatch)
    assert expected == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize(
    ("made", "how"),
    [
        (shapes.neox(512, 8, layers=2, vocabulary=500), How()),
        (shapes.mixtral(512, 1024, 8, 2, layers=2, vocabulary=500), How()),
        (shapes.mixtral(512, 1024, 8, 2, layers=2, vocabulary=500), How(rank=8)),
    ],
)
def test_parallel_branches_and_experts(made: Made, how: How, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, found = peaks(made, how, monkeypatch)
    assert expected == pytest.approx(found, rel=0.05 if how.rank else 0.02)


def test_each_beam_has_keys_and_values_of_its_own() -> None:
    made = shapes.t5(256, 512, 4, 64, layers=4)
    model = replace(architecture_of(built(made, How()), made), vocabulary=100)
    batch, how = Batch(4, 128, 4 * 8, 4 * 8, 8), Computing(Numbers(4, "cpu"), "sdpa", How().update, gathered=False)
    one, four = (sum(evaluation(model, batch, how, Writing(beams, 512)).values()) for beams in (1, 4))
    each = 4 * 4 * 2 * 256 * 4 * (512 + 128)  # rows, layers, keys and values in fp32 of all tokens
    assert four - one == pytest.approx(3 * each, rel=0.2)
    assert four > 4 * each
