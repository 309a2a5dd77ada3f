"""The number of rows is found by what the recipe says of the data, and guessed where nobody has encoded them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft.data import row_counts
from distft.recipe.schema import Recipe
from tests.unit.recipes import recipe


def made(folder: Path, name: str = "a.jsonl", task: dict[str, Any] | None = None, **data: Any) -> Recipe:
    more = {} if task is None else {"task": task}
    return recipe(data={"train": str(folder / name), "cache": str(folder / "cache"), "row_tokens": 100, **data}, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 100)  # 1400 bytes
    (tmp_path / "cache" / "tokens").mkdir(parents=True)
    return tmp_path


def test_what_a_run_has_noted_is_found_by_recipes_of_the_same_data(folder: Path) -> None:
    assert row_counts.noted(made(folder)) is None
    row_counts.note(made(folder), 77)
    assert row_counts.noted(made(folder, eval="/other", today="2026-02-02")) == 77
    for other in (made(folder, row_tokens=200), made(folder, packing=False), made(folder, task={"type": "dpo"})):
        assert row_counts.noted(other) is None


def test_other_content_is_other_data(folder: Path) -> None:
    row_counts.note(made(folder), 77)
    (folder / "a.jsonl").write_text("{}\n")
    assert row_counts.noted(made(folder)) is None


def test_a_cache_that_cannot_be_written_is_no_error(folder: Path) -> None:
    row_counts.note(made(folder, cache=str(folder / "a.jsonl")), 77)


def test_rows_that_are_shared_are_guessed_from_bytes_others_from_lines(folder: Path) -> None:
    assert row_counts.guessed(made(folder)) == 4  # 1400 bytes, 4 a token, 100 a row
    assert row_counts.guessed(made(folder, packing=False)) == 100
    assert row_counts.guessed(made(folder, task={"type": "dpo"})) == 100
    (folder / "a.parquet").write_text("")
    assert row_counts.guessed(made(folder, "a.parquet")) is None
    assert row_counts.guessed(made(folder, "not there.jsonl")) is None
