"""Looks at the first records of a data file and says how a recipe of a task has to read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from distft.data import formats, readers
from distft.data.answers import answers_of
from distft.data.columns import Found, find_columns, known_names
from distft.data.layout import LOOKED_AT, Layout, layout_of
from distft.data.pairs import pair_of
from distft.data.records import Broken, Record
from distft.data.sources import Source, read_leniently
from distft.data.spans import Span, has_spans, has_words, is_left_out, spans_of
from distft.errors import UserError

Spec = str | dict[str, str]  # a file, or parallel files by column

_SHORTEST, _LONGEST = 64, 4096  # tokens in a row
_ENCODER_HOLDS = 512  # positions of most encoders
_ENCODERS = ("masked-lm", "sequence-classification", "token-classification", "question-answering")
# beside what fills a row
_UNSIZED = ("label", "tags", "spans", "annotations", "answers", "answer", "is_impossible", "target")
_CHARACTERS = 4  # in a token of a text in Latin letters


@dataclass(frozen=True)
class Look:
    """What a recipe says about the data.

    Attributes:
        keys: of the section `data`.
        task: keys of the section `task` that follow from the data.
        best: the score for `train.best`; None: as in the starter.
        doubts: what is not sure, a sentence each.
    """

    keys: dict[str, Any]
    task: dict[str, Any]
    best: str | None
    doubts: list[str]


def look_at(task: str, train: Spec | None, held_out: Spec | None) -> Look:
    """Read the beginning of the data.

    Raises:
        UserError: there is nothing in them that can be read.
    """
    assert train is not None
    layout = layout_of(Path(train), task, known_names(task)) if isinstance(train, str) else Layout()
    keys: dict[str, Any] = {"train": train}
    if held_out is not None:
        keys["eval"] = held_out
    keys |= layout.keys
    numbers = [str(number) for number in range(1, layout.width + 1)]
    records, broken = _first_records(train, {**keys, "columns": numbers})
    found = find_columns(task, records, named=not numbers)
    doubts = [*layout.doubts, *broken, *found.doubts]
    if numbers:
        names = {column: name for name, column in found.columns.items()}
        keys["columns"] = [names.get(number, f"column{number}") for number in numbers]
        records = [Record(r.where, {names.get(c, c): value for c, value in r.fields.items()}) for r in records]
        found = Found({name: name for name in found.columns}, found.doubts)
    fields = {name: column for name, column in found.columns.items() if name != column}
    if "spans" in found.columns and any(has_words(record, {}) for record in records):
        fields["spans"] = found.columns["spans"]  # else the words count
    if fields:
        keys["fields"] = fields
    of_task, best = _decided(task, records, found.columns, doubts)
    keys["row_tokens"] = _row(task, records, found.columns, doubts)
    if held_out is not None:
        doubts += _differences(keys, held_out, set(found.columns.values()))
    return Look(keys, of_task, best, [_in_one_line(doubt) for doubt in doubts])


def _in_one_line(text: str) -> str:
    """A sentence that can be a comment in YAML, whatever it quotes from the data."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _first_records(spec: Spec, keys: Mapping[str, Any]) -> tuple[list[Record], list[str]]:
    """Records from the beginning, and a sentence if some of it cannot be read."""
    delimiter, format = keys.get("delimiter"), keys.get("format", "auto")
    source = Source(spec, delimiter=delimiter, columns=tuple(keys.get("columns", ())), format=format)
    rows = list(islice(read_leniently(source), LOOKED_AT))
    records = [row for row in rows if isinstance(row, Record)]
    broken = [row for row in rows if isinstance(row, Broken)]
    if broken and not records:
        raise readers.refusal(broken[0])
    if not records:
        raise UserError(f"data file {source.name} holds no record")
    told = (
        f"{len(broken)} of the first {len(rows)} records cannot be read: {broken[0].where} {broken[0].why}"
        if broken
        else ""
    )
    return records, [told] if told else []


def _decided(
    task: str, records: Sequence[Record], columns: Mapping[str, str], doubts: list[str]
) -> tuple[dict[str, Any], str | None]:
    """Keys of `task` that the records decide, and the score for `train.best` if it is not the usual one."""
    fields = {name: column for name, column in columns.items() if name != column}
    refused = _refusal(task, records, fields) if len(columns) > 1 or task == "causal-lm" else None
    if refused is not None:
        doubts.append(refused)
    if task == "sequence-classification" and "label" in columns:
        return _kind([record.fields.get(columns["label"]) for record in records], doubts)
    if task == "question-answering" and refused is None and {"answers", "answer"} & columns.keys():
        found = [answers_of(record, fields) for record in records]
        if all(found):
            doubts.append(
                f"task.unanswerable: the first {len(found)} questions all have an answer; say false if all do"
            )
        doubts += _repeated([answers[0].text for answers in found if answers], len(found))
    if task == "token-classification" and "tags" in columns and _breaks_iob2(records, columns["tags"]):
        doubts.append("tags begin with I- without a B- before (IOB1), which a CRF refuses: crf is off")
        return {"crf": False}, None
    return {}, None


def _repeated(said: Sequence[str], questions: int) -> list[str]:
    """A doubt about an answer that comes so often that it may be a sign for "none"."""
    [(answer, times)] = Counter(said).most_common(1) or [("", 0)]
    if times <= max(3, questions / 10):
        return []
    return [f"{answer!r} answers {times} of {questions} questions; if it means that there is no answer, leave it empty"]


def _refusal(task: str, records: Sequence[Record], fields: Mapping[str, str]) -> str | None:
    """Why the task will not take one of the records."""
    parsers = {
        "causal-lm": formats.parse,
        "dpo": pair_of,
        "question-answering": answers_of,
        "token-classification": _spans_if_any,
    }
    try:
        for record in records if task in parsers else ():
            parsers[task](record, fields)
    except UserError as error:
        return str(error)
    return None


def _spans_if_any(record: Record, fields: Mapping[str, str]) -> list[Span]:
    return spans_of(record, fields) if has_spans(record, fields) and not is_left_out(record) else []


def _kind(labels: Sequence[Any], doubts: list[str]) -> tuple[dict[str, Any], str | None]:
    """The kind of classification."""
    if any(isinstance(label, list) for label in labels):
        return {"kind": "multi-label"}, None
    names = {str(label) for label in labels}
    fractions = [name for name in names if "." in name and _is_number(name)]
    if fractions and all(map(_is_number, names)) and any(float(name) % 1 for name in fractions):
        doubts.append("the labels are numbers with fractions, so kind is regression")
        return {"kind": "regression"}, "pearson"
    if len(names) > max(20, len(labels) / 3):
        doubts.append(f"label has {len(names)} values in {len(labels)} records: is it a label?")
    if len(names) == 1:
        doubts.append(f"label is {labels[0]!r} in each of the first {len(labels)} records: is the file sorted?")
    return {}, None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _breaks_iob2(records: Sequence[Record], column: str) -> bool:
    """True if tags of B, I and O have an I-X that follows neither B-X nor I-X."""
    rows = [[str(tag) for tag in tags] for r in records if isinstance(tags := r.fields.get(column), list)]
    if not {tag[:1] for tags in rows for tag in tags} <= set("BIO"):
        return False
    pairs = [(before, tag) for tags in rows for before, tag in zip(["O", *tags], tags, strict=False)]
    return any(tag.startswith("I") and before[1:] != tag[1:] for before, tag in pairs)


def _row(task: str, records: Sequence[Record], columns: Mapping[str, str], doubts: list[str]) -> int:
    """Tokens in a row: a power of two that holds the longest of the records, by a rough count."""
    if task in ("ctc", "speech-seq2seq"):
        doubts.append("row_tokens is in milliseconds and as in the sample: longer recordings are dropped (ctc) or cut")
        return 1000
    filling = [column for name, column in columns.items() if name not in _UNSIZED]
    longest = max(sum(_tokens(record.fields.get(column)) for column in filling) for record in records)
    rows = _SHORTEST
    while rows < min(longest, _LONGEST):
        rows *= 2
    if task in _ENCODERS and rows > _ENCODER_HOLDS:
        doubts.append(f"the longest record has about {longest:.0f} tokens, but most encoders hold {_ENCODER_HOLDS}")
        rows = _ENCODER_HOLDS
    return rows


def _tokens(value: Any) -> float:
    """About how many tokens a value has; signs that are no ASCII count one each."""
    if isinstance(value, str):
        latin = sum(character.isascii() for character in value)
        return latin / _CHARACTERS + len(value) - latin
    if isinstance(value, Mapping):
        return sum(map(_tokens, value.values()))
    return sum(max(1.0, _tokens(item)) for item in value) if isinstance(value, list) else 0.0


def _differences(keys: Mapping[str, Any], held_out: Spec, needed: set[str]) -> list[str]:
    """How the held-out data differ from the training data, by which the recipe reads both."""
    records, broken = _first_records(held_out, keys)
    missing = sorted(needed - {name for record in records for name in record.fields})
    lacks = (
        [f"the held-out data lack the columns {', '.join(missing)}, and one recipe reads both alike"] if missing else []
    )
    return [*broken, *lacks]
