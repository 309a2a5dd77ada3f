"""The losses of several sources: what the loss of a step is made of."""

from __future__ import annotations

import pytest
import torch

from distft.tasks.causal_lm import TOKENS, Causal
from distft.tasks.protocol import Each
from distft.tasks.shared.chunked_head import ChunkedHead
from distft.training.source_losses import SourceLosses
from tests.unit.tasks.test_causal_lm import CPU, ROWS, gradients, make, through_task

NAMES = ("first", "second", "third")


def test_sums_are_of_the_documents_of_each_source_over_all_micro_batches() -> None:
    found = SourceLosses(NAMES, CPU)
    found.add(Each(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 1, 1])), torch.tensor([2, 0]))
    found.add(Each(torch.tensor([8.0]), torch.tensor([0])), torch.tensor([2]))
    found.add(Each(torch.zeros(0), torch.zeros(0, dtype=torch.int64)), torch.zeros(0, dtype=torch.int64))  # padding
    sums = found.by_name(found.sums.flatten().tolist())
    assert found.means(sums) == {"source.first.loss": 3.0, "source.third.loss": 4.5}
    assert sums["source.second.targets"] == 0


@pytest.mark.parametrize("told", [False, True])
def test_a_loss_is_the_same_to_the_bit_whether_its_parts_are_wanted_or_not(told: bool) -> None:
    model = make("llama")
    task = Causal(model.forward, flatten=False)
    task.head = ChunkedHead(model, model.lm_head, chunk=3) if told else None
    expected, wanted = through_task(model, task, ROWS)
    losses, each = task.loss_and_each(model, task.collate(ROWS, CPU))
    losses[TOKENS].backward()  # type: ignore[no-untyped-call]
    assert losses[TOKENS].item() == expected
    assert all(torch.equal(gradient, wanted[name]) for name, gradient in gradients(model).items())
    assert not each.losses.requires_grad
    for number, document in enumerate(document for row in ROWS for document in row):
        alone = task.loss(model, task.collate([[document]], CPU))[TOKENS].item()
        assert each.losses[each.owners == number].sum().item() == pytest.approx(alone, rel=1e-4)
