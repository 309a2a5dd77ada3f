"""From records to sentences: words and their tags, written as two lists or as a text in which spans are marked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from distft.data.class_names import NOT_LEARNED, label_text
from distft.data.formats import value_of
from distft.data.records import Record
from distft.data.spans import Span, has_spans, has_text, has_words, is_left_out, marked_text, spans_of
from distft.data.words import Word, word_text, words_in
from distft.errors import UserError
from distft.metrics.tag_schemes import OUTSIDE

TAGS = "tags"  # a field of records
TextWords = Literal["signs", "spaces"]  # how a text becomes words: see the key task.words
INSIDE = "spans begin or end inside a word, which was divided there"
UNACCEPTED = "not annotated, or not accepted by those who did it, were dropped"


@dataclass(frozen=True)
class Sentence:
    """
    Attributes:
        words: texts; of a text with places in it `Word`s.
        tags: one for each word; None: not known.
        left_out: it was not annotated, or not accepted.
        notes: what had to be done, and how often.
    """

    words: Sequence[str | Word]
    tags: list[str] | None = None
    from_spans: bool = False
    left_out: bool = False
    notes: Mapping[str, int] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        return list(map(word_text, self.words))


def read(record: Record, fields: Mapping[str, str], answered: bool = True, how: TextWords = "signs") -> Sentence:
    """The words of a record, and their tags if it is `answered`; what is to be predicted may be a text alone.

    Raises:
        UserError: what it lacks, or what is wrong with it.
    """
    if answered and has_spans(record, fields):
        return _marked(record, fields, how)
    if not answered and has_text(record, fields) and ("spans" in fields or not has_words(record, fields)):
        text = marked_text(record, fields)
        return Sentence(text.split() if how == "spaces" else words_in(text)[0])
    if answered:
        _check_annotated(record, fields)
    return Sentence(_words(record, fields), _tags(record, fields) if answered else None)


def tag_names(record: Record, fields: Mapping[str, str], how: TextWords = "signs") -> list[str]:
    """The tags that a record adds to those of a run. Those of spans come in full: a longer one may come later."""
    if not has_spans(record, fields):
        _check_annotated(record, fields)
        return _tags(record, fields)
    spans = _accepted(record, fields, how)
    kinds = dict.fromkeys(span.kind for span in spans or ())
    return [] if spans is None else [OUTSIDE, *(f"{mark}-{kind}" for kind in kinds for mark in "BI")]


def _check_annotated(record: Record, fields: Mapping[str, str]) -> None:
    """Raises UserError for a text with nothing else, in the words of its form."""
    if has_text(record, fields) and not (fields.keys() | record.fields.keys()) & {"tokens", TAGS}:
        raise UserError(
            f"{record.where} has a text, but no spans in it; write spans: [] if it has none, or name their column "
            "(data.fields: {spans: its name})"
        )


def _accepted(record: Record, fields: Mapping[str, str], how: TextWords) -> list[Span] | None:
    """The spans of a record; None if it was not annotated, or not accepted."""
    if how == "spaces":
        raise UserError(f"{record.where} has spans, but task.words is spaces; set it to signs, or give tokens and tags")
    return None if is_left_out(record) else spans_of(record, fields)


def _marked(record: Record, fields: Mapping[str, str], how: TextWords) -> Sentence:
    spans = _accepted(record, fields, how)
    if spans is None:
        return Sentence((), [], from_spans=True, left_out=True)
    cuts = [place for span in spans for place in (span.start, span.end)]
    words, forced = words_in(marked_text(record, fields), cuts)
    inside = sum(span.start in forced or span.end in forced for span in spans)
    return Sentence(words, list(_marks(words, spans)), from_spans=True, notes={INSIDE: inside} if inside else {})


def _marks(words: Iterable[Word], spans: Sequence[Span]) -> Iterator[str]:
    """A tag of IOB2 for each word; a span begins and ends with one."""
    rest = iter(spans)
    span = next(rest, None)
    for begin, _, _ in words:
        while span is not None and span.end <= begin:
            span = next(rest, None)
        if span is None or begin < span.start:
            yield OUTSIDE
        else:
            yield f"{'B' if begin == span.start else 'I'}-{span.kind}"


def _words(record: Record, fields: Mapping[str, str]) -> list[str]:
    column = fields.get("tokens", "tokens")
    words = _listed(record, "tokens", fields)
    for index, word in enumerate(words):
        if not isinstance(word, str):
            raise UserError(f"{record.where}: {column}[{index}] must be a text, not {type(word).__name__}")
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"{record.where}: {column}[{index}] contains half of a surrogate pair; repair it") from None
    return words


def _tags(record: Record, fields: Mapping[str, str]) -> list[str]:
    """The tags of a record: names, or numbers as names."""
    tags = _listed(record, TAGS, fields)
    found = []
    for index, tag in enumerate(tags):
        text = label_text(tag) if isinstance(tag, str | int | float) and not isinstance(tag, bool) else None
        if text is None or text == str(NOT_LEARNED):
            place = f"{fields.get(TAGS, TAGS)}[{index}]"
            raise UserError(f"{record.where}: {place} must be the name of a tag or its number, not {tag!r}")
        found.append(tag if isinstance(tag, str) else text)
    return found


def _listed(record: Record, name: str, fields: Mapping[str, str]) -> list[Any]:
    """A column that is a list, or a text that holds one in JSON, as in CSV files."""
    value = found = value_of(record, name, fields)
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, list | tuple):
        column = fields.get(name, name)
        raise UserError(f"{record.where}: {column} must be a list, or a list written in JSON, not {str(value)[:60]!r}")
    return list(found)
