"""Where a run is in its data, as it is recorded."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from distft.checkpoint.state import Identity, Progress
from distft.errors import UserError
from distft.recipe.changes import agree
from distft.training.session import Session, differences


@pytest.mark.parametrize(
    ("next_row", "rows", "total_rows", "epoch"),
    [
        (16, 10, 10, 1.0),  # one epoch of 10 rows in one step of 16, of which 6 are empty
        (16, 10, None, 1.6),  # the same step of a run of a number of steps, which goes on with the next epoch
        (8, 10, 10, 0.8),
        (32, 10, 25, 2.5),
        (0, 10, 25, 0.0),
    ],
)
def test_rows_that_fill_up_the_last_step_are_not_counted(
    next_row: int, rows: int, total_rows: int | None, epoch: float
) -> None:
    progress = Progress(step=1, next_row=next_row, useful_tokens=0, last_eval=0)
    session: Any = SimpleNamespace(progress=progress, rows=rows, total_rows=total_rows, stream=None)
    getter: Any = Session.epoch
    assert getter.fget(session) == epoch


def test_a_run_whose_conversations_were_read_in_another_way_says_so() -> None:
    before = Identity("base", "rows", "tokenizer", {"torch": "2.10.0"})
    now = replace(before, rows="others", versions={**before.versions, "reading of conversations": "2"})
    with pytest.raises(UserError) as caught:
        agree(differences(before, now), frozenset(), "it does not match this run")
    assert str(caught.value).splitlines() == [
        "it does not match this run; add --allow data.content --allow versions, or use the same values:",
        "  needs --allow: data.content: 'rows' before, 'others' now",
        "  needs --allow: versions.reading of conversations: None before, '2' now",
    ]
    agree(differences(before, now), frozenset({"data.content", "versions"}), "")


def test_what_auto_has_come_to_is_not_settled_otherwise_in_silence() -> None:
    before = Identity("base", "rows", "tokenizer", {}, {"train.micro_batch": "2", "model.attention": "by document"})
    lost = replace(before, settled={"train.micro_batch": "4", "model.attention": "with masks"})
    with pytest.raises(UserError) as caught:
        agree(differences(before, lost), frozenset(), "it does not match this run")
    assert str(caught.value).splitlines() == [
        "it does not match this run; add --allow model.attention --allow train.micro_batch, or use the same values:",
        "  needs --allow: train.micro_batch: '2' before, '4' now",
        "  needs --allow: model.attention: 'by document' before, 'with masks' now",
    ]
    named = replace(before, settled={})  # in the recipe, by which it is compared
    older = replace(before, settled={})  # a checkpoint that does not say
    assert differences(before, named) == differences(older, lost) == []
