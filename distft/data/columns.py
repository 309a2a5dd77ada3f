"""Which column of a data file is which field of a task: by name first, then by what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from distft.data.layout import normal
from distft.data.records import Record

_TEXTS = (
    "text sentence sentence1 review utterance tweet comment content body message document premise question1 headline"
)
_NAMES = {  # field: words that name it, the likeliest first
    "text": f"{_TEXTS} title query question sms post passage article transcript transcription",
    "text_pair": "textpair text2 sentence2 hypothesis question2 reply response",
    "label": "label labels sentiment intent category class topic polarity emotion rating stars score target y",
    "tokens": "tokens words token word",
    "tags": "tags nertags postags ner biotags taglist labels label",
    "spans": "spans entities ents labels label annotations annotation ner",
    "context": "context passage paragraph document article review text",
    "question": "question query",
    "answers": "answers answerspans humananswerspans humanansspans",
    "answer": "answer answertext answerspan span",
    "is_impossible": "isimpossible unanswerable",
    "source": "source src en english input original article document dialogue text",
    "target": "target tgt de german output translation summary highlights reference",
    "audio": "audio file path filename wav speech recording audiopath audiofile sound",
    "prompt": "prompt question query input problem request user",
    "completion": "completion answer response output reply solution assistant target",
    "chosen": "chosen preferred better winner accepted",
    "rejected": "rejected dispreferred worse loser refused",
}
_SPOKEN = "text transcript transcription sentence words normalizedtext"
_SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
_ASKS = ("?", "\N{FULLWIDTH QUESTION MARK}")
_SHORTEST_TEXT = 20  # mean characters of what may be a text and no label


@dataclass(frozen=True)
class Found:
    """Columns by field, and a sentence for each that is not sure or missing."""

    columns: dict[str, str]
    doubts: list[str]


@dataclass(frozen=True)
class Wanted:
    """What a task reads from a record. `either`: groups of which one must be there, the first that fits."""

    either: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()


WANTED = {
    "causal-lm": Wanted(
        (("messages",), ("conversations",), ("instruction", "output"), ("prompt", "completion"), ("text",)),
        ("input", "system", "history"),
    ),
    "masked-lm": Wanted((("text",),)),
    "sequence-classification": Wanted((("text", "label"),), ("text_pair",)),
    "token-classification": Wanted((("tokens", "tags"), ("text", "spans"), ("data", "annotations"))),
    "question-answering": Wanted(
        (("context", "question", "answers"), ("context", "question", "answer")), ("is_impossible",)
    ),
    "seq2seq-lm": Wanted((("source", "target"),)),
    "ctc": Wanted((("audio", "text"),)),
    "speech-seq2seq": Wanted((("audio", "text"),)),
    "dpo": Wanted(
        (("conversations", "chosen", "rejected"), ("messages", "chosen", "rejected"), ("prompt", "chosen", "rejected")),
    ),
}


def known_names(task: str) -> set[str]:
    """Words that name a column of this task, normalised: a line with one of them is a header."""
    fields = {name for group in WANTED[task].either for name in (*group, *WANTED[task].optional)}
    return {word for name in fields for word in (normal(name), *_words(name, task))} | {"id"}


def find_columns(task: str, records: Sequence[Record], named: bool = True) -> Found:
    """The columns of the fields of a task.

    Args:
        records: at least one.
        named: False for a table without a header, whose columns can only be told by what is in them.
    """
    columns = list(dict.fromkeys(name for record in records for name in record.fields))
    values = {
        name: [record.fields[name] for record in records if record.fields.get(name) is not None] for name in columns
    }
    values = {name: held for name, held in values.items() if held}
    found, group = _best_form(task, values if named else {})
    doubts = []
    for name in group:
        if name not in found:
            free = {column: held for column, held in values.items() if column not in found.values()}
            guess = _by_content(task, name, free, {field: values[column] for field, column in found.items()})
            if guess is None:
                there = ", ".join(values) if named else f"{len(values)} without names"
                doubts.append(f"no column was found for {name}; there are: {there}; name it in data.fields")
            else:
                found[name] = guess
                if named:
                    doubts.append(f"{name} is read from the column {guess!r}, a guess by what is in it")
    if named:
        doubts += _rivals(task, found, values)
    return Found(found, doubts)


def _best_form(task: str, values: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The columns found by name for the group of fields that fits best, and that group.

    A form whose own names are there comes before one that only words for them speak for: many columns are a "text".
    """
    wanted = WANTED[task]
    tried = [_by_name(task, (*group, *wanted.optional), values) for group in wanted.either]

    def fit(index: int) -> tuple[bool, int]:
        group, found = wanted.either[index], tried[index]
        return all(found.get(name) == name for name in group), sum(name in found for name in group) - len(group)

    best = max(range(len(tried)), key=fit)
    return tried[best], wanted.either[best]


def _by_name(task: str, fields: Sequence[str], values: Mapping[str, Any]) -> dict[str, str]:
    """Columns whose name is that of a field, or a word for it."""
    found = {name: name for name in fields if name in values and _may_be(name, values[name])}
    by_word: dict[str, str] = {}
    for column in values:
        by_word.setdefault(normal(column), column)
    for name in fields:
        free = [by_word[word] for word in _words(name, task) if word in by_word]
        free = [column for column in free if column not in found.values() and _may_be(name, values[column])]
        if name not in found and free:
            found[name] = free[0]
    pair = [column for column in values if len(column) == 2 and column.isalpha()]
    if "source" in fields and len(pair) == 2 and not {"source", "target"} & values.keys():
        found = {"source": pair[0], "target": pair[1]}
    return found


def _may_be(name: str, held: Sequence[Any]) -> bool:
    """False for columns that can be no spans or tokens, whatever they are called: annotation tools have other ones."""
    match name:
        case "spans":
            return all(_holds_spans(value) for value in held)
        case "tokens":
            return not any(isinstance(value, list) and any(isinstance(one, dict) for one in value) for value in held)
    return True


def _holds_spans(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip()[:1] in ("[", "{")
    return isinstance(value, dict) or (isinstance(value, list) and all(isinstance(one, dict | list) for one in value))


def _words(name: str, task: str) -> list[str]:
    if name == "text" and task in ("ctc", "speech-seq2seq"):
        return _SPOKEN.split()
    return [normal(name), *_NAMES.get(name, "").split()]


def _rivals(task: str, found: Mapping[str, str], values: Mapping[str, Any]) -> Iterator[str]:
    """Doubts about fields for which another column has a name as good."""
    for name, column in found.items():
        words = _words(name, task)[1:]
        others = [c for c in values if normal(c) in words and c not in found.values()]
        if column != name and others and name in ("label", "text", "context", "source", "target"):
            yield f"{name} is read from the column {column!r}; it could also be {' or '.join(map(repr, others))}"
    if set(found) >= {"source", "target"} and found["source"] != "source":
        yield f"{found['source']!r} is the source and {found['target']!r} the target; exchange them for the other way"


def _by_content(task: str, name: str, free: Mapping[str, list[Any]], taken: Mapping[str, list[Any]]) -> str | None:
    """The column that is most likely a field.

    Args:
        free: values by column, of those that are no other field yet.
        taken: values by field, of those that were found before.
    """
    texts = {column: mean(map(len, held)) for column, held in free.items() if _is_text(held)}
    match name:
        case "label":
            return _label(free)
        case "text" | "context":
            label = _label(free) if task == "sequence-classification" and "label" not in taken else None
            return max((column for column in texts if column != label), key=lambda column: texts[column], default=None)
        case "source" | "prompt":
            return next(iter(texts), None)
        case "target" | "completion":
            return next(iter(texts)) if len(texts) == 1 else None
        case "tokens":
            return _first(free, lambda held: all(isinstance(value, list) and value for value in held))
        case "tags":
            lengths = [len(value) for value in taken.get("tokens", [])]
            return _first(free, lambda held: [len(v) if isinstance(v, list) else -1 for v in held] == lengths)
        case "question":
            return _first(free, lambda held: sum(str(v).rstrip().endswith(_ASKS) for v in held) > len(held) / 2)
        case "answers" | "answer":
            contexts = taken.get("context", [])
            return _first(free, lambda held: _is_text(held) and all(map(_is_part, held, contexts)) and bool(contexts))
        case "audio":
            return _first(free, lambda held: all(str(value).lower().endswith(_SOUNDS) for value in held))
    return None


def _is_part(text: str, context: Any) -> bool:
    return text in str(context)


def _first(free: Mapping[str, list[Any]], fits: Callable[[list[Any]], bool]) -> str | None:
    return next((column for column, held in free.items() if fits(held)), None)


def _is_text(held: Sequence[Any]) -> bool:
    return all(isinstance(value, str) for value in held)


def _label(free: Mapping[str, list[Any]]) -> str | None:
    """The column with the fewest values, if they are short and come again and again; names before numbers."""
    few: dict[str, tuple[bool, int]] = {}
    for column, held in free.items():
        kinds = {str(value) for value in held}
        number = all(kind.lstrip("-").replace(".", "", 1).isdigit() for kind in kinds)
        if 1 < len(kinds) <= max(2, len(held) / 3) and mean(map(len, kinds)) < 2 * _SHORTEST_TEXT:
            few[column] = (number and len(kinds) > 5, len(kinds))
    return min(few, key=lambda column: few[column], default=None)
