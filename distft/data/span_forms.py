"""The forms in which annotation tools write spans, each as {start, end, kind, surface} for a span."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distft.data.layout import normal
from distft.errors import UserError

Entry = Mapping[str, Any]  # start, end: the end is outside; kind; surface: what the text is said to have there, or None
_STARTS = ("start", "startoffset", "startidx", "startindex", "startchar", "startpos", "begin", "beginoffset", "from")
_ENDS = ("end", "endoffset", "endidx", "endindex", "endchar", "endpos", "stop", "to")
_KINDS = ("label", "labels", "type", "tag", "entitytype", "entitygroup", "category", "class", "nertype", "entity")
_SURFACES = ("text", "word", "words", "surface", "mention", "entity", "value", "span")
_PAIRS = ("offsets", "span")


def entries(value: Any, place: str, where: str) -> Iterator[tuple[str, Entry]]:
    """(place, span) of the spans in a column.

    Args:
        place: of the column, for people; each span gets its own.
        where: the record, for people.

    Raises:
        UserError: what is there are no spans.
    """
    if isinstance(value, str):
        value = _parsed(value, f"{where}: {place}")
    if isinstance(value, Mapping):
        rows = _columnar(value, f"{where}: {place}")
        yield from _by_kind(value, place, where) if rows is None else entries(rows, place, where)
        return
    if not isinstance(value, list | tuple):
        raise UserError(f"{where}: {place} must be a list of spans, not {str(value)[:60]!r}")
    if any(isinstance(item, Mapping) and "result" in item for item in value):
        place, value = _of_label_studio(value, place, where)
    for index, item in enumerate(value):
        here = f"{place}[{index}]"
        if isinstance(item, Mapping):
            yield here, _of_object(item, f"{where}: {here}")
        elif isinstance(item, list | tuple) and len(item) == 3:
            yield here, dict(zip(("start", "end", "kind"), item, strict=True))
        else:
            raise UserError(
                f"{where}: {here} must be an object with start, end and label, or [start, end, label], "
                f"not {str(item)[:60]!r}"
            )


def _parsed(value: str, where: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UserError(f"{where} must be a list of spans, or one written in JSON, not {value[:60]!r}") from None


def _columnar(value: Mapping[str, Any], where: str) -> list[Entry] | None:
    """A list of objects where a columnar file has an object of lists; None if it is none."""
    columns = {name: held for name, held in value.items() if isinstance(held, list | tuple)}
    names = set(map(normal, columns))
    if not names & {*_STARTS, "offset"} or not names & {*_ENDS, "length"}:
        return None
    if len(set(map(len, columns.values()))) > 1:
        raise UserError(f"{where} has lists of different lengths; give each span one value in all of them")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _by_kind(value: Mapping[str, Any], place: str, where: str) -> Iterator[tuple[str, Entry]]:
    """CLUE's {kind: {surface: [[first, last]]}}; `last` is inside."""
    for kind, surfaces in value.items():
        if surfaces is None:  # columnar files give every record all kinds
            continue
        if not isinstance(surfaces, Mapping):
            raise UserError(
                f"{where}: {place}.{kind} must be {{words: [[first, last]]}}, or {place} a list of spans; "
                f"it is {str(surfaces)[:60]!r}"
            )
        for surface, pairs in surfaces.items():
            for pair in pairs if isinstance(pairs, list) else [pairs]:
                first, last = _pair(pair, f"{where}: {place}.{kind}.{surface}")
                yield f"{place}.{kind}.{surface}", {"start": first, "end": last + 1, "kind": kind, "surface": surface}


def _of_label_studio(value: Sequence[Any], place: str, where: str) -> tuple[str, list[Any]]:
    """The results of the annotation that counts, of those that several people may have made.

    Raises:
        UserError: they differ, and none is marked as the truth.
    """
    made = [(f"{place}[{index}].result", one) for index, one in enumerate(value) if isinstance(one, Mapping)]
    made = [(here, one) for here, one in made if not one.get("was_cancelled")]
    made = [(here, one) for here, one in made if one.get("ground_truth")] or made
    results = [(here, [item["value"] for item in one.get("result") or [] if _marks(item)]) for here, one in made]
    if any(_places(result) != _places(results[0][1]) for _, result in results):
        raise UserError(
            f"{where}: {place} has {len(results)} annotations that differ; keep one, or mark it ground_truth"
        )
    return results[0] if results else (place, [])


def _marks(item: Any) -> bool:
    """Whether a result of Label Studio is a span, and no choice for the whole text, relation, or comment."""
    value = item.get("value") if isinstance(item, Mapping) else None
    return isinstance(value, Mapping) and {"start", "end"} <= value.keys()


def _places(result: Sequence[Entry]) -> set[str]:
    return {json.dumps([item.get("start"), item.get("end"), item.get("labels")]) for item in result}


def _of_object(item: Entry, where: str) -> Entry:
    held = {normal(str(name)): value for name, value in item.items() if value is not None}
    kind = next((name for name in _KINDS if name in held), None)
    surface = next((held[name] for name in _SURFACES if name in held and name != kind), None)
    pair = next((held[name] for name in _PAIRS if isinstance(held.get(name), list | tuple)), None)
    points = held.get("points")
    if isinstance(points, list) and len(points) == 1 and isinstance(points[0], Mapping):  # Dataturks; the end is inside
        start, last = _pair([points[0].get("start"), points[0].get("end")], where)
        end, surface = last + 1, points[0].get("text", surface)
    elif pair is not None:
        start, end = _pair(pair[0] if len(pair) == 1 else pair, where)
    else:
        start = next((held[name] for name in (*_STARTS, "offset") if name in held), None)
        end = next((held[name] for name in _ENDS if name in held), None)
        if end is None and is_number(start) and is_number(held.get("length")):
            end = start + held["length"]
    return {"start": start, "end": end, "kind": held.get(kind or ""), "surface": surface}


def _pair(value: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(map(is_number, value)):
        raise UserError(f"{where} must be one pair of numbers, begin and end, not {str(value)[:60]!r}")
    return value[0], value[1]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
