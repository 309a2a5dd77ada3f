"""File readers, one per format. A broken record becomes a `Broken`, and reading continues after it.

Each takes a path, which may end in .gz or .zst, and streams, but for JSON that is one value. What is wrong with the
file as a whole raises UserError. Tables and CoNLL columns have modules of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distft.data import class_names
from distft.data.records import Broken, Record
from distft.data.text_lines import WHOLE, Stretch, bare, is_compressed, lines, opened
from distft.errors import UserError, first_line

RecordStream = Iterator[Record | Broken]
_FILLED = re.compile(r"\S")


def refusal(broken: Broken) -> UserError:
    return UserError(f"{broken.where} {broken.why}")


def text(path: Path, keep_empty: bool = False, encoding: str | None = None, stretch: Stretch = WHOLE) -> RecordStream:
    """Each line a record {"text": line}; lines of nothing but blanks are none, unless `keep_empty`."""
    for number, line in enumerate(lines(path, encoding, stretch), stretch.first):
        if isinstance(line, Broken):
            yield line
        elif keep_empty or line.strip():
            yield Record(f"{path}:{number}", {"text": bare(line)})


def jsonl(path: Path, encoding: str | None = None, stretch: Stretch = WHOLE) -> RecordStream:
    for number, line in enumerate(lines(path, encoding, stretch), stretch.first):
        if isinstance(line, Broken):
            yield line
        elif line.strip():
            yield _record(f"{path}:{number}", _parse(line.strip(), path, number))


def json_file(path: Path, encoding: str | None = None) -> RecordStream:
    """An array of objects, objects of several lines each, SQuAD's articles, an object of columns, or JSON lines."""
    first = next((line for line in lines(path, encoding) if isinstance(line, Broken) or line.strip()), "")
    start = first.strip() if isinstance(first, str) else ""
    if start.startswith("["):
        for index, value in enumerate(_whole(path, encoding)):
            yield _record(f"{path}[{index}]", value)
    elif start == "{":
        yield from _objects(path, encoding)
    elif (value := _one_object(path, start, encoding)) is not None:
        yield from _in_one(path, value)
    else:
        yield from jsonl(path, encoding)


def _objects(path: Path, encoding: str | None) -> RecordStream:
    """Objects over several lines, one behind the other, each a record; or one that holds all of them."""
    found = list(_values(path, _text(path, encoding)))
    if len(found) == 1:
        yield from _in_one(path, found[0][1])
    else:
        yield from (_record(f"{path}:{line}", value) for line, value in found)


def _values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The JSON values of a text, one behind the other, each with the line it begins on."""
    decoder, place, line = json.JSONDecoder(), 0, 1
    while (found := _FILLED.search(text, place)) is not None:
        line += text.count("\n", place, found.start())
        try:
            value, place = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError) as error:
            raise refusal(_unparsed(path, 1 if isinstance(error, json.JSONDecodeError) else line, error)) from None
        yield line, value
        line += text.count("\n", found.start(), place)


def _text(path: Path, encoding: str | None) -> str:
    read = list(lines(path, encoding))
    broken = next((line for line in read if isinstance(line, Broken)), None)
    if broken is not None:
        raise refusal(broken)
    return "".join(line for line in read if isinstance(line, str))


def _whole(path: Path, encoding: str | None) -> Any:
    """The one JSON value of a file."""
    value = _parse(_text(path, encoding), path, 1)
    if isinstance(value, Broken):
        raise refusal(value)
    return value


def _one_object(path: Path, start: str, encoding: str | None) -> Any:
    """The value of a file that is one object and begins as SQuAD's or columns do; None where it holds JSON lines.

    Args:
        start: its first line.
    """
    first = _parse(start, path, 1)
    if not start.startswith("{") or not (isinstance(first, Broken) or _is_squad(first) or is_columns(first)):
        return None
    try:
        return _whole(path, encoding)
    except UserError:
        return None


def _in_one(path: Path, value: Any) -> RecordStream:
    """The records of a file that is one object."""
    if _is_squad(value):
        return _squad(path, value["data"])
    if is_columns(value):
        return numbered(str(path), rows_of(value))
    raise UserError(
        f"{path} is one JSON object; expected an array of objects, JSON lines, columns of equal lengths, or "
        "SQuAD's articles"
    )


def is_columns(value: Any) -> bool:
    """Whether an object holds columns: equally long lists, as `to_dict` of datasets has them, or {"0": ..., "1": ...}
    of the same numbers, as pandas writes them. It may be a single record of lists: words and tags, or messages."""
    if not isinstance(value, dict) or not value:
        return False
    columns = list(value.values())
    if all(isinstance(column, dict) for column in columns):
        return (
            bool(columns[0])
            and all(column.keys() == columns[0].keys() for column in columns)
            and all(index.isdecimal() for index in columns[0])
        )
    if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) > 1:
        return False
    cells = [cell for column in columns for cell in column]
    of_words = any(name.lower().endswith(("tokens", "words", "tags")) for name in value)
    nested = any(isinstance(cell, list) for cell in cells)
    return bool(cells) and (nested or not of_words) and not any(isinstance(cell, dict) for cell in cells)


def rows_of(columns: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    first = next(iter(columns.values()))
    for place in first if isinstance(first, dict) else range(len(first)):
        yield {name: column[place] for name, column in columns.items()}


def _is_squad(value: Any) -> bool:
    data = value.get("data") if isinstance(value, dict) else None
    return isinstance(data, list) and any(isinstance(article, dict) and "paragraphs" in article for article in data)


def _squad(path: Path, articles: Sequence[Any]) -> RecordStream:
    """A flat record for each question, with the fields that the hub's copy of SQuAD has."""
    for number, article in enumerate(articles):
        for place, paragraph in _inside(f"{path}[{number}]", article, "paragraphs"):
            for where, question in _inside(place, paragraph, "qas"):
                yield _in_format(where, partial(_question, where, article, paragraph, question))


def _inside(where: str, value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The parts of a value by their places; what is Broken as its own only part."""
    found = value if isinstance(value, Broken) else _in_format(where, lambda: list(value[key]))
    if isinstance(found, Broken):
        yield where, found
    else:
        for number, part in enumerate(found):
            yield f"{where}.{key}[{number}]", part


def _in_format(where: str, make: Callable[[], Any]) -> Any:
    """What is made of a value; Broken if the value is not as SQuAD's are."""
    try:
        return make()
    except KeyError as error:
        return Broken(where, f"lacks {error}, which the SQuAD format requires; add it")
    except (TypeError, AttributeError):
        return Broken(where, "is not in the SQuAD format: a value has the wrong type")


def _question(where: str, article: Mapping[str, Any], paragraph: Any, question: Any) -> Record | Broken:
    if isinstance(question, Broken):
        return question
    answers = question.get("answers") or []
    fields = {
        "id": str(question.get("id", where)),
        "title": article.get("title", ""),
        "context": paragraph["context"],
        "question": question["question"],
        "answers": {name: [answer[name] for answer in answers] for name in ("text", "answer_start")},
        "is_impossible": bool(question.get("is_impossible", False)),
    }
    return Record(where, fields)


def _parse(source: str, path: Path, line: int) -> Any:
    """The JSON value of a text that begins on `line` of `path`, or Broken."""
    try:
        return json.loads(source)
    except (ValueError, RecursionError) as error:
        return _unparsed(path, line, error)


def _unparsed(path: Path, line: int, error: Exception) -> Broken:
    """What is wrong with JSON in a text that begins on `line`."""
    if isinstance(error, json.JSONDecodeError):
        return Broken(f"{path}:{line + error.lineno - 1}", f"is not valid JSON: {error.msg} (column {error.colno})")
    # a number of thousands of digits; brackets nested thousands deep
    return Broken(f"{path}:{line}", f"cannot be parsed as JSON: {error}")


def _record(where: str, value: Any) -> Record | Broken:
    if isinstance(value, Broken):
        return value
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict):
        return Record(where, {"text": value[0], **value[1]})  # spaCy's training data
    if not isinstance(value, dict):
        return Broken(where, f"holds a JSON {type(value).__name__}, expected an object with named fields")
    return Record(where, value)


def parquet(path: Path) -> RecordStream:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    source: Any = path
    if is_compressed(path):
        with opened(path) as file:
            source = pyarrow.BufferReader(file.read())  # whole: it has to be read from its end
    try:
        with pyarrow.parquet.ParquetFile(source) as table:
            rows = (row for batch in table.iter_batches(batch_size=1000) for row in batch.to_pylist())
            name = class_names.of_parquet(table.schema_arrow.metadata)
            yield from numbered(str(path), rows if name is None else map(name, rows))
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"data file {path} cannot be read as parquet: {first_line(error)}") from error


def numbered(name: str, rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    for index, row in enumerate(rows):
        yield Record(f"{name}[{index}]", row)
