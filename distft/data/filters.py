"""Filters: which records of a source are taken, by what their columns hold (`filter` of a source)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distft.data.records import Broken, Record
from distft.recipe.sources import Condition, Filter


def taken(rows: Iterator[Record | Broken], wanted: Filter) -> Iterator[Record | Broken]:
    """The records that meet all conditions, and what cannot be read. A column that is absent holds null."""
    for row in rows:
        if isinstance(row, Broken) or all(_meets(row.fields.get(column), one) for column, one in wanted.items()):
            yield row


def described(wanted: Filter) -> Mapping[str, Any]:
    """As JSON."""
    return {
        column: condition.model_dump() if isinstance(condition, Condition) else condition
        for column, condition in wanted.items()
    }


def _meets(value: Any, condition: Any) -> bool:
    if not isinstance(condition, Condition):
        return any(_same(value, one) for one in (condition if isinstance(condition, list) else [condition]))
    if any(_same(value, one) for one in condition.none_of):
        return False
    if condition.min is None and condition.max is None:
        return True
    number = _number(value)
    return (
        number is not None
        and (condition.min is None or number >= condition.min)
        and (condition.max is None or number <= condition.max)
    )


def _same(value: Any, wanted: Any) -> bool:
    """Numbers may be written as text, as tables have them; true and 1 are not the same."""
    if isinstance(value, bool) or isinstance(wanted, bool) or wanted is None or value is None:
        return value is wanted
    if isinstance(wanted, int | float):
        return _number(value) == wanted
    return bool(value == wanted)


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value
