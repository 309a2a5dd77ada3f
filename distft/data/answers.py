"""Answer spans of question-answering records, in the forms that data sets use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from distft.data.formats import text_of, value_of
from distft.data.records import Record
from distft.errors import UserError

_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True)
class Answer:
    """`begin`: the character of the context at which it begins, as far as the data tell."""

    text: str
    begin: int | None = None


def written(record: Record, name: str, fields: Mapping[str, str]) -> str:
    """The text in a column.

    Raises:
        UserError: there is none, or it is blank.
    """
    text = text_of(record, name, fields)
    if not text.strip():
        raise UserError(f"{record.where}: {fields.get(name, name)} is empty; write it, or leave the record out")
    return text


def answers_of(record: Record, fields: Mapping[str, str]) -> list[Answer]:
    """The accepted answers; none where the context does not hold any.

    They are in the column `answers` or `answer`: SQuAD's {"text": [...], "answer_start": [...]}, a list of {"text",
    "answer_start"}, a text, texts, or JSON of one of these. `is_impossible` outweighs them.

    Raises:
        UserError: there is no such column, or something else is in it.
    """
    impossible = record.fields.get(fields.get("is_impossible", "is_impossible"))
    if str(impossible).lower() in ("true", "1"):
        return []
    known = "answers" in fields or "answers" in record.fields
    name = "answer" if not known and ("answer" in fields or "answer" in record.fields) else "answers"
    where = f"{record.where}: {fields.get(name, name)}"
    found = []
    for text, begin in _listed(_parsed(value_of(record, name, fields)), where):
        text = "" if text is None else text_of(replace(record, fields={name: text}), name, {})
        if begin is not None and type(begin) is not int:
            raise UserError(f"{where}: answer_start must be a whole number, not {_short(begin)}")
        if text.strip():
            found.append(Answer(text, begin))
    return found


def _parsed(value: Any) -> Any:
    """What a text says that is JSON of answers; any other value as it is, in brackets or not."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    items = parsed if isinstance(parsed, list) else [parsed]
    return parsed if all(isinstance(item, str | dict) for item in items) else value


def _listed(value: Any, where: str) -> Iterator[tuple[Any, Any]]:
    """Pairs of a text and where it begins."""
    match value:
        case None:
            pass
        case str():
            yield value, None
        case list() | tuple():
            for item in value:
                yield from _listed(item, where)
        case {"text": list() | tuple() as texts}:
            begins = value.get("answer_start")
            begins = [None] * len(texts) if begins is None else begins
            if not isinstance(begins, list | tuple) or len(begins) != len(texts):
                raise UserError(f"{where} must have as many numbers in answer_start as texts in text")
            yield from zip(texts, begins, strict=True)
        case {"text": text}:
            yield text, value.get("answer_start")
        case _:
            raise UserError(
                f"{where} must be a text, texts, or as SQuAD has it {{'text': [...], 'answer_start': [...]}}, "
                f"not {_short(value)}"
            )


def placed(record: Record, context: str, answers: Sequence[Answer]) -> tuple[int, int, bool]:
    """First and one-past-last character of the first answer that is in the context, without the blanks around it; and
    whether others are not where they are said to be.

    Where the data do not tell its place it is searched for, as words of their own before a part of other words.

    Raises:
        UserError: none is where it is said to be, or in the context at all.
    """
    places, misplaced = [], ""
    for answer in answers:
        begin = _searched(answer.text, context) if answer.begin is None else answer.begin
        found = context[max(begin, 0) :][: len(answer.text)]
        if answer.begin is not None and (begin < 0 or found != answer.text):
            misplaced = misplaced or (
                f"{record.where}: the answer {_short(answer.text)} is not in the context at answer_start {begin}, "
                f"where {_short(found)} is; correct answer_start, or leave it out to have the answer searched for"
            )
        elif begin >= 0:
            places.append((begin, answer.text))
    if not places and misplaced:
        raise UserError(misplaced)
    if not places:
        raise UserError(
            f"{record.where}: the answer {_short(answers[0].text)} is not in the context {_short(context)}; "
            "it must be there to the letter"
        )
    begin, text = places[0]
    begin += len(text) - len(text.lstrip())
    return begin, begin + len(text.strip()), bool(misplaced)


def _searched(text: str, context: str) -> int:
    """Where an answer is first without a letter or a digit next to it, else where it is first; -1: nowhere."""
    inner = text.strip()
    before = text.index(inner)
    first = begin = context.find(text)
    while begin >= 0:
        start, end = begin + before, begin + before + len(inner)
        if not any(map(str.isalnum, context[max(start - 1, 0) : start] + context[end : end + 1])):
            return begin
        begin = context.find(text, begin + 1)
    return first


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
