"""Defaults that changed: a run that was begun under the earlier one keeps it, and so its losses."""

from __future__ import annotations

from typing import Any

from distft.recipe.schema import Recipe

EARLIER: dict[tuple[str, str], object] = {
    ("engine", "grad_dtype"): "bf16",
}
"""(section, key): what the key stood for in recipes that were resolved before there was such a key."""


def complete(resolved: dict[str, Any]) -> None:
    """Give a resolved recipe, as read, the keys that it was resolved without."""
    for (section, key), value in EARLIER.items():
        values = resolved.get(section)
        if isinstance(values, dict):
            values.setdefault(key, value)


def inherited(old: Recipe, new: Recipe) -> Recipe:
    """`new`, with the values of `old` for those of these keys that `new` leaves to their defaults."""
    for section, key in EARLIER:
        before, after = getattr(old, section), getattr(new, section)
        if key in type(before).model_fields and key in type(after).model_fields and key not in after.model_fields_set:
            kept = after.model_copy(update={key: getattr(before, key)})
            new = new.model_copy(update={section: kept})
    return new
