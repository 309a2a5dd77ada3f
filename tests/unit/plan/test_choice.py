"""What `auto` stands for, with a made-up plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distft.plan import changes, choice
from distft.plan.choice import choose
from distft.plan.devices import Device, device
from distft.plan.duration import Times
from distft.plan.prediction import Moment, Prediction
from distft.recipe.schema import Recipe
from distft.run.batch import Batch
from tests.unit.recipes import recipe

GPU = device("H100-80GB")
AGAIN = {"off": 0.0, "selective": 0.5, "full": 1.0}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "is_known", lambda wanted: True)


def wanted(rows: int | str = "auto", again: Any = "auto", batch: int = 64) -> Recipe:
    train = {"steps": 5, "global_batch": batch, "micro_batch": rows}
    return recipe(train=train, model={"path": "/m", "activation_checkpointing": again})


def plan(room: int | None, at: Device | None = GPU, launch: float = 0.0) -> Callable[[Recipe, int], Prediction]:
    """A row takes 10 bytes, 6 and 2 by what is recomputed, and a second for 64 rows, a third more if all is recomputed;
    `launch`: seconds of each micro-batch."""

    def predict(one: Recipe, nodes: int) -> Prediction:
        again, rows = AGAIN[one.model.activation_checkpointing], one.train.micro_rows
        seconds = one.train.global_batch / 64 * (1 + again / 3) + launch * one.train.global_batch / rows
        moment = Moment("loss", {"activations": int(rows * (10 - 8 * again))})
        times = Times(seconds, 0.0, 0.0, 0.0) if at is not None else None
        return Prediction(nodes * 2, 2, at, [moment], (), room, None, times, 1.0, 1000, 0)

    return predict


def values(found: Batch) -> tuple[int, str]:
    return found.micro_batch, found.activation_checkpointing


def test_the_largest_without_recomputation_where_nothing_else_is_faster() -> None:
    assert values(choose(wanted(), 1, 2, plan(10**6))) == (32, "off")
    assert values(choose(wanted(), 1, 2, plan(100))) == (8, "off")  # 16 rows are 160


def test_a_margin_stays_free() -> None:
    assert values(choose(wanted(), 1, 2, plan(91))) == (4, "off")
    assert values(choose(wanted(), 1, 2, plan(92))) == (8, "off")  # 80 bytes of which are seven eighths and less
    assert values(choose(wanted(), 1, 2, plan(133, None))) == (4, "off")
    assert values(choose(wanted(), 1, 2, plan(134, None))) == (8, "off")  # three fifths, on a CPU


def test_recomputation_where_it_pays() -> None:
    """Without it a row at a time fits; launches of 32 micro-batches cost more than a third of the computing."""
    assert values(choose(wanted(), 1, 2, plan(12))) == (1, "off")
    assert values(choose(wanted(), 1, 2, plan(12, launch=0.1))) == (4, "full")
    assert values(choose(wanted(), 1, 2, plan(8))) == (1, "selective")
    assert values(choose(wanted(), 1, 2, plan(3))) == (1, "full")
    assert values(choose(wanted(), 1, 2, plan(12, None))) == (1, "selective")  # of no known speed


def test_rows_divide_those_of_a_rank() -> None:
    assert values(choose(wanted(batch=60), 1, 2, plan(170)))[0] == 10  # of 30
    assert values(choose(wanted(batch=60), 3, 2, plan(10**6)))[0] == 10
    assert values(choose(wanted(batch=1000), 1, 2, plan(10**6)))[0] == 125  # and no more than 128


def test_what_the_recipe_says_stays() -> None:
    assert values(choose(wanted(4), 1, 2, plan(30))) == (4, "selective")
    assert values(choose(wanted(again="full"), 1, 2, plan(30))) == (8, "full")
    assert values(choose(wanted(again=False), 1, 2, plan(1))) == (1, "off")


def test_no_recomputation_of_a_model_that_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "can_recompute", lambda wanted: False)
    assert values(choose(wanted(), 1, 2, plan(1))) == (1, "off")
    assert values(choose(wanted(), 1, 2, plan(12, launch=0.1))) == (1, "off")


def test_what_takes_least_where_nothing_fits_and_says_so() -> None:
    found = choose(wanted(), 1, 2, plan(1))
    assert values(found) == (1, "full")
    assert (found.peak, found.room) == (2, 1)
    assert "may not fit" in found.why


def test_what_takes_least_where_the_plan_knows_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose(wanted(), 1, 2, plan(None))
    assert values(found) == (1, "full")
    assert found.peak is None
    assert found.why.startswith("the memory of a rank is not known, so")
    monkeypatch.setattr(choice, "is_known", lambda wanted: False)
    found = choose(wanted(), 1, 2, plan(10**6))
    assert values(found) == (1, "full")
    assert found.why.startswith("the plan does not know its model type, so")
    assert values(choose(wanted(8, "auto"), 1, 2, plan(10**6))) == (8, "full")


def test_its_reason_has_figures() -> None:
    assert choose(wanted(), 1, 2, plan(80 << 20)).why == (
        "the fastest by the plan that fits: 0 MiB at most of 80 MiB, 10 MiB of which are to stay free"
    )
