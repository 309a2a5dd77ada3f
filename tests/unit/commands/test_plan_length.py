"""Steps and hours of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distft.commands.plan_length import Length, length_of, sentence
from distft.data import row_counts
from distft.plan.duration import Times
from distft.plan.prediction import Moment, Prediction
from distft.recipe.schema import Recipe
from tests.unit.recipes import recipe


def predicted(step_seconds: float | None = 2.0) -> Prediction:
    times = None if step_seconds is None else Times(step_seconds, 0.0, 0.0, 0.0)
    return Prediction(8, 8, None, [Moment("loss", {"weights": 1})], (), None, None, times, 1.0, 100, 3 * 10**9)


def by_epochs(folder: Path, **data: Any) -> Recipe:
    (folder / "tokens").mkdir(exist_ok=True)
    (folder / "a.jsonl").write_text('{"text": "x"}\n' * 100)
    keys = {"train": str(folder / "a.jsonl"), "cache": str(folder), "packing": False, **data}
    return recipe(data=keys, train={"epochs": 2.5, "global_batch": 16}, checkpoint={"every": 20})


def test_steps_of_the_recipe_take_hours() -> None:
    made = recipe(train={"steps": 9000})
    assert sentence(length_of(made, predicted()), predicted()) == (
        "about 9,000 steps (train.steps), 5.0 hours (without evaluations); "
        "a checkpoint of 2.8 GiB each 100 steps, written in 3 s at an assumed 1 GB/s"
    )
    assert "hours" not in sentence(length_of(made, predicted(None)), predicted(None))


def test_what_was_measured_goes_before_what_is_reckoned() -> None:
    found = length_of(recipe(train={"steps": 90}), predicted(), step_seconds=4.0)
    assert found.seconds == 360
    assert "6 minutes (as steps were measured)" in sentence(found, predicted())


def test_epochs_are_counted_in_rows_that_a_run_has_noted(tmp_path: Path) -> None:
    made = by_epochs(tmp_path)
    assert length_of(made, predicted()).steps == 16  # 2.5 * 100 lines / 16
    assert "100 rows, guessed from the size of the data" in length_of(made, predicted()).because
    row_counts.note(made, 320)
    found = length_of(made, predicted())
    assert (found.steps, found.because) == (50, "320 rows, as a run has encoded the data")
    assert length_of(made, predicted(), steps=48).steps == 48  # a run that has recorded an epoch


def test_nothing_known_of_the_rows_is_one_sentence(tmp_path: Path) -> None:
    found = length_of(by_epochs(tmp_path, train=str(tmp_path / "a.parquet")), predicted())
    assert found == Length(None, "", 2.0, False, 20)
    said = sentence(found, predicted())
    assert said.startswith("train.epochs: how many steps they are is not known")
    assert said.endswith("a checkpoint of 2.8 GiB each 20 steps, written in 3 s at an assumed 1 GB/s")
