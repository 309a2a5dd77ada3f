"""Where a run is in its data, as it is recorded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distft.checkpoint.state import Progress
from distft.training.session import Session


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
    session: Any = SimpleNamespace(progress=progress, rows=rows, total_rows=total_rows)
    getter: Any = Session.epoch
    assert getter.fget(session) == epoch
