"""What `data.streaming` does not go with."""

from __future__ import annotations

from typing import Any

import pytest

from distft.recipe.load import contradictions
from tests.unit.recipes import recipe

STREAMS = {"train": "/d", "streaming": True}
TASKS = {name: {"task": {"type": "masked-lm"}, "train": f"/{name}"} for name in ("a", "b")}


@pytest.mark.parametrize(
    ("sections", "key", "why"),
    [
        ({"train": {"epochs": 1.0}}, "streaming", "needs train.steps"),
        ({"task": {"type": "ctc"}}, "streaming", "cannot be used with task.type ctc"),
        ({"task": {"type": "dpo"}}, "streaming", "cannot be used with task.type dpo"),
        ({"task": {"type": "multi-task", "tasks": TASKS}}, "streaming", "cannot be used with task.type multi-task"),
        ({"data": {**STREAMS, "group_by_length": True}}, "group_by_length", "sorts all rows"),
        ({"data": {**STREAMS, "duplicates": "drop"}}, "duplicates", "compares all documents"),
        ({}, None, ""),
        ({"data": {"train": "/d", "group_by_length": True}, "train": {"epochs": 1.0}}, None, ""),
    ],
)
def test_what_needs_all_data_before_the_first_step(sections: dict[str, Any], key: str | None, why: str) -> None:
    found = [told for told in contradictions(recipe(**{"data": STREAMS, **sections})) if told[0] != ("data", "train")]
    if key is None:
        assert found == []
    else:
        [(keys, text)] = found
        assert keys == ("data", key)
        assert text.startswith(why)
