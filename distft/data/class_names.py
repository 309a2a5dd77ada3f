"""Labels as texts: the names that data sets keep for their numbers (`ClassLabel`), and one text for one meaning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

NOT_LEARNED = -100  # what libraries write where a loss is to look away
_WRAPPERS = ("Sequence", "LargeList", "List")

Translate = Callable[[Any], Any]


class ClassNumber(int):
    """A number that stands for a class, with the name of the class."""

    name: str

    def __new__(cls, number: int, name: str) -> ClassNumber:
        made = super().__new__(cls, number)
        made.name = name
        return made


class LabelText(str):
    """A label; `earlier` is what runs call it that were begun before there was another text for it."""

    __slots__ = ("earlier",)
    earlier: str

    def __new__(cls, text: str, earlier: str) -> LabelText:
        made = super().__new__(cls, text)
        made.earlier = earlier
        return made


def label_text(value: Any) -> str | None:
    """The text of a label that was read; None if it is none: null, NaN, blank."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    earlier = str(value).strip()
    if isinstance(value, ClassNumber):
        return LabelText(value.name, repr(int(value)))
    if isinstance(value, float) and value.is_integer():
        return LabelText(str(int(value)), earlier)
    return earlier or None


def place_of(label: str, places: Mapping[str, int]) -> int | None:
    """The place of a label in a run's label set; None if it is not in it."""
    found = places.get(label)
    return places.get(label.earlier) if found is None and isinstance(label, LabelText) else found


def of_features(features: Any) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """What gives the numbers of classes in a row their names; None if there are none.

    Args:
        features: of `datasets`, as it writes them into files: by column, {"names": [...], "_type": "ClassLabel"}.
    """
    if not isinstance(features, Mapping):
        return None
    return _of_object(features)


def of_parquet(metadata: Mapping[bytes, bytes] | None) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """The same from what `datasets` writes beside the schema of a parquet file."""
    try:
        return of_features(json.loads((metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return None


def _translate(feature: Any) -> Translate | None:
    if isinstance(feature, Sequence) and not isinstance(feature, str) and len(feature) == 1:
        return _of_each(feature[0])
    if not isinstance(feature, Mapping):
        return None
    kind = feature.get("_type")
    if kind == "ClassLabel":
        return _of_classes(feature.get("names") or [])
    if kind in _WRAPPERS:
        return _of_each(feature.get("feature"))
    return _of_object(feature) if kind is None else None


def _of_classes(names: Sequence[str]) -> Translate | None:
    def name(value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if value == -1:  # what `datasets` keeps where there is no label
            return None
        return ClassNumber(value, names[value]) if 0 <= value < len(names) else value

    return name if names else None


def _of_each(feature: Any) -> Translate | None:
    """Of lists, and of objects of lists, which `datasets` makes of lists of objects."""
    inner = _translate(feature)
    if inner is None:
        return None
    columns = _of_object({name: [held] for name, held in feature.items()}) if _is_object(feature) else None

    def name(values: Any) -> Any:
        if columns is not None and isinstance(values, dict):
            return columns(values)
        return [inner(value) for value in values] if isinstance(values, list) else values

    return name


def _of_object(features: Mapping[str, Any]) -> Translate | None:
    found = {key: translate for key, feature in features.items() if (translate := _translate(feature))}
    if not found:
        return None

    def name(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: found[key](held) if key in found else held for key, held in value.items()}

    return name


def _is_object(feature: Any) -> bool:
    return isinstance(feature, Mapping) and "_type" not in feature
