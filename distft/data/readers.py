"""File readers, one per format. A broken record becomes a `Broken`, and reading continues after it.

Each takes a path, which may end in .gz, and streams, but for JSON that is one value. What is wrong with the file as a
whole raises UserError. Tables and CoNLL columns have modules of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distft.data import class_names
from distft.data.records import Broken, Record
from distft.data.text_lines import bare, is_gzip, lines, opened
from distft.errors import UserError, first_line

RecordStream = Iterator[Record | Broken]
_FILLED = re.compile(r"\S")


def refusal(broken: Broken) -> UserError:
    return UserError(f"{broken.where} {broken.why}")


def text(path: Path, keep_empty: bool = False, encoding: str | None = None) -> RecordStream:
    """Each line a record {"text": line}; lines of nothing but blanks are none, unless `keep_empty`."""
    for number, line in enumerate(lines(path, encoding), 1):
        if isinstance(line, Broken):
            yield line
        elif keep_empty or line.strip():
            yield Record(f"{path}:{number}", {"text": bare(line)})


def jsonl(path: Path, encoding: str | None = None) -> RecordStream:
    for number, line in enumerate(lines(path, encoding), 1):
        if isinstance(line, Broken):
            yield line
        elif line.strip():
            yield _record(f"{path}:{number}", _parse(line.strip(), path, number))


def json_file(path: Path, encoding: str | None = None) -> RecordStream:
    """An array of objects, objects of several lines each, SQuAD's articles, or, as in most such files, JSON lines."""
    first = next((line for line in lines(path, encoding) if isinstance(line, Broken) or line.strip()), "")
    start = first.strip() if isinstance(first, str) else ""
    if start.startswith("["):
        for index, value in enumerate(_whole(path, encoding)):
            yield _record(f"{path}[{index}]", value)
    elif start == "{":
        yield from _objects(path, encoding)
    elif (articles := _articles(path, start, encoding)) is not None:
        yield from _squad(path, articles)
    else:
        yield from jsonl(path, encoding)


def _objects(path: Path, encoding: str | None) -> RecordStream:
    """Objects over several lines, one behind the other, each a record; or one that is SQuAD's."""
    found = list(_values(path, _text(path, encoding)))
    if len(found) == 1:
        yield from _squad(path, _articles_of(path, found[0][1]))
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


def _articles(path: Path, start: str, encoding: str | None) -> Any:
    """The articles of a file that is one object of SQuAD's; None where it holds JSON lines. `start`: its first line."""
    first = _parse(start, path, 1)
    if not start.startswith("{") or not (isinstance(first, Broken) or _is_squad(first)):
        return None
    try:
        value = _whole(path, encoding)
    except UserError:
        return None
    return _articles_of(path, value)


def _articles_of(path: Path, value: Any) -> Any:
    if not _is_squad(value):
        raise UserError(f"{path} is one JSON object; expected an array of objects, JSON lines, or SQuAD's articles")
    return value["data"]


def _is_squad(value: Any) -> bool:
    data = value.get("data") if isinstance(value, dict) else None
    return isinstance(data, list) and any(isinstance(article, dict) and "paragraphs" in article for article in data)


def _squad(path: Path, articles: Sequence[Any]) -> Iterator[Record]:
    """A flat record for each question, with the fields that the hub's copy of SQuAD has."""
    where = str(path)
    try:
        for a, article in enumerate(articles):
            where = f"{path}[{a}]"
            for p, paragraph in enumerate(article["paragraphs"]):
                where = f"{path}[{a}].paragraphs[{p}]"
                for q, question in enumerate(paragraph["qas"]):
                    where = f"{path}[{a}].paragraphs[{p}].qas[{q}]"
                    yield Record(where, _question(where, article, paragraph["context"], question))
    except KeyError as error:
        raise UserError(f"{where} lacks {error}, which the SQuAD format requires; add it") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{where} is not in the SQuAD format: a value has the wrong type") from error


def _question(where: str, article: Mapping[str, Any], context: Any, question: Mapping[str, Any]) -> dict[str, Any]:
    answers = question.get("answers") or []
    return {
        "id": str(question.get("id", where)),
        "title": article.get("title", ""),
        "context": context,
        "question": question["question"],
        "answers": {name: [answer[name] for answer in answers] for name in ("text", "answer_start")},
        "is_impossible": bool(question.get("is_impossible", False)),
    }


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
    if is_gzip(path):
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
