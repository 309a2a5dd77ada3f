"""Texts in which spans are marked, such as named entities, in the forms that annotation tools write."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from distft.data.class_names import label_text
from distft.data.formats import text_of, value_of
from distft.data.records import Record
from distft.data.span_forms import Entry, entries, is_number
from distft.errors import UserError

SPANS = "spans"  # a field of records
COLUMNS = ("spans", "entities", "ents", "labels", "label", "annotations")  # where it is looked for


@dataclass(frozen=True)
class Span:
    """Characters `start` to `end` of a text (Python's slice), of a kind."""

    start: int
    end: int
    kind: str


def has_spans(record: Record, fields: Mapping[str, str]) -> bool:
    """Whether a record is of this form; one with words or tags is not, unless data.fields names the spans."""
    if SPANS in fields:
        return True
    if fields.keys() & {"tokens", "tags"} or record.fields.get("tags") is not None or has_words(record, fields):
        return False
    return has_text(record, fields) and _column(record, fields) is not None


def has_words(record: Record, fields: Mapping[str, str]) -> bool:
    """Whether there are `tokens` that can be words: those of annotation tools are objects that say where they are."""
    tokens = record.fields.get(fields.get("tokens", "tokens"))
    return tokens is not None and not (isinstance(tokens, list) and any(isinstance(one, Mapping) for one in tokens))


def has_text(record: Record, fields: Mapping[str, str]) -> bool:
    return fields.get("text", "text") in record.fields or isinstance(record.fields.get("data"), Mapping)


def marked_text(record: Record, fields: Mapping[str, str]) -> str:
    """The text of a record: in its column, or where Label Studio has it, in `data`.

    Raises:
        UserError: there is none, or it is not clear which.
    """
    column, data = fields.get("text", "text"), record.fields.get("data")
    if column in record.fields or not isinstance(data, Mapping):
        return text_of(record, "text", fields)
    texts = [name for name, value in data.items() if isinstance(value, str)]
    name = column if column in data or len(texts) != 1 else texts[0]
    if name not in data:
        raise UserError(
            f"{record.where}: data has no {name!r}, and {len(texts)} other texts; name the right one in data.fields: "
            "{text: its name}"
        )
    return text_of(Record(record.where, {column: data[name]}), "text", fields)


def is_left_out(record: Record) -> bool:
    """Whether those who annotated a record did not accept it (Prodigy, Label Studio), or nobody did annotate it."""
    given = record.fields.get("annotations")
    if isinstance(given, list) and isinstance(record.fields.get("data"), Mapping):
        return all(isinstance(one, Mapping) and bool(one.get("was_cancelled")) for one in given)
    answer = record.fields.get("answer")
    return isinstance(answer, str) and answer in ("reject", "ignore")


def spans_of(record: Record, fields: Mapping[str, str]) -> list[Span]:
    """The spans of a record in the order of its text; none of them begins before the one before it ends.

    Raises:
        UserError: one is not in the text, is not what the record says that it is, or overlaps another.
    """
    text, column = marked_text(record, fields), _column(record, fields) or SPANS
    value = value_of(record, SPANS, {**fields, SPANS: column})
    if value is None:
        raise UserError(f"{record.where}: {column} is null; write [] if nothing is marked, or leave the record out")
    found = [_checked(text, entry, f"{record.where}: {place}") for place, entry in entries(value, column, record.where)]
    spans = sorted(set(found), key=lambda span: (span.start, span.end, span.kind))  # one may be there twice
    for one, other in pairwise(spans):
        if other.start < one.end:
            raise UserError(
                f"{record.where}: {_shown(one, text)} and {_shown(other, text)} overlap, and a word has one tag; "
                "keep one of them"
            )
    return spans


def _shown(span: Span, text: str) -> str:
    return f"{span.kind} {text[span.start : span.end][:40]!r} [{span.start}, {span.end}]"


def _column(record: Record, fields: Mapping[str, str]) -> str | None:
    if SPANS in fields:
        return fields[SPANS]
    there = [name for name in COLUMNS if name in record.fields]
    return next((name for name in there if record.fields[name] is not None), there[0] if there else None)


def _checked(text: str, entry: Entry, where: str) -> Span:
    start, end, kind = entry["start"], entry["end"], entry["kind"]
    if not is_number(start) or not is_number(end):
        raise UserError(f"{where} must have whole numbers for start and end, not {start!r} and {end!r}")
    start, end = int(start), int(end)
    if isinstance(kind, list | tuple):
        if len(kind) > 1:
            raise UserError(
                f"{where} has {len(kind)} labels, {', '.join(map(str, kind[:5]))}; a word has one tag: keep one"
            )
        kind = kind[0] if kind else None
    name = label_text(kind) if isinstance(kind, str | int | float) and not isinstance(kind, bool) else None
    if name is None:
        raise UserError(f"{where} must have the name of a kind as its label, not {kind!r}")
    if start >= end or start < 0:
        raise UserError(f"{where}: [{start}, {end}] is no span of a text; start must be at least 0 and less than end")
    if end > len(text):
        raise UserError(f"{where}: [{start}, {end}] is beyond the text, which has {_sizes(text, end)}")
    surface = entry.get("surface")
    surface = surface[0] if isinstance(surface, list) and len(surface) == 1 else surface
    if isinstance(surface, str) and surface.strip() and not _alike(text[start:end], surface):
        raise UserError(
            f"{where} is said to be {surface[:40]!r}, but [{start}, {end}] of the text is {text[start:end][:40]!r}; "
            f"{_mistake(text, start, end, surface)}"
        )
    kept = text[start:end].strip()
    if not kept:
        raise UserError(f"{where}: [{start}, {end}] holds nothing but white space; leave it out")
    start += text[start:end].index(kept)
    return Span(start, start + len(kept), str(name))


def _alike(found: str, said: str) -> bool:
    """The same, but for case and white space: models and tools change them in what they quote."""
    return _plain(found) == _plain(said)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _mistake(text: str, start: int, end: int, surface: str) -> str:
    """What to do, by what would be there if something else was counted."""
    before = max(0, start - 1)
    in_bytes = text.encode()[start:end].decode(errors="replace")
    in_units = text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le", errors="replace")
    tried = {
        "the end seems to be inside the span: add 1 to it": text[start : end + 1],
        "the end seems to be too far by 1: subtract 1": text[start : end - 1],
        "the offsets seem to count bytes of UTF-8: make them count characters": in_bytes,
        "the offsets seem to count UTF-16, as in JavaScript and Java: make them count characters": in_units,
        "the offsets seem to count from 1: subtract 1 from both": text[before : end - 1],
        "the offsets seem to count from 1, the end inside: subtract 1 from the start": text[before:end],
        "the offsets seem to count two characters for the end of a line": text.replace("\n", "\r\n")[start:end],
    }
    return next((what for what, found in tried.items() if _alike(found, surface)), "correct one of the two")


def _sizes(text: str, end: int) -> str:
    """How long a text is, and what else may have been counted."""
    others = {"bytes of UTF-8": len(text.encode()), "units of UTF-16": len(text.encode("utf-16-le")) // 2}
    fits = [f"{number} {name}" for name, number in others.items() if len(text) < end <= number]
    return f"{len(text)} characters" + (f", but {fits[-1]}: offsets count characters" if fits else "")
