"""Losses of heads of encoder-decoders that are told the targets, beside those of all logits."""

from __future__ import annotations

import pytest
import torch

from distft.tasks.shared.boundaries import VARLEN
from distft.tasks.shared.chunked_head import ChunkedHead, find
from tests.models.test_chunked_head import compare
from tests.models.test_flat_pairs import CPU, ROWS, model_of, task_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what transformers warns about is its own


@pytest.mark.parametrize("attention", [VARLEN, "sdpa"])
@pytest.mark.parametrize("architecture", ["bart", "m2m_100", "t5", "mt5"])
def test_losses_and_gradients_are_those_of_all_logits(architecture: str, attention: str) -> None:
    model = model_of(architecture, attention).eval()
    whole, chunked = task_of(model), task_of(model)
    head = find(model, 8, lambda vocabulary: chunked.few(model, vocabulary, CPU))
    assert isinstance(head, ChunkedHead), head
    chunked.head = head
    batch = whole.collate(ROWS, CPU)
    assert len(batch.wanted.targets) > 3 * 8
    compare(model, whole, chunked, batch)
    compare(model, whole, chunked, whole.collate([[]], CPU))
    with torch.no_grad():
        expected, found = (task.predict(model, batch) for task in (whole, chunked))
    assert [one["text"] for one in found] == [one["text"] for one in expected]
    assert [one["loss"] for one in found] == pytest.approx([one["loss"] for one in expected], rel=1e-5)


def test_a_bias_that_is_added_behind_the_head_keeps_all_logits() -> None:
    """As Marian's published models have it."""
    model = model_of("marian", VARLEN).eval()
    model.final_logits_bias.normal_()
    task = task_of(model)
    assert find(model, 8, lambda vocabulary: task.few(model, vocabulary, CPU)) == (
        "what it does to its head's output is not known"
    )
