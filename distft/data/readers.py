"""File readers, one per format. A broken record becomes a `Broken`, and reading continues after it.

Each reader takes a path, which may end in .gz, and streams, but for JSON that is one value. What is wrong with the
file as a whole raises UserError.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from itertools import chain
from pathlib import Path
from typing import Any

from distft.data import class_names
from distft.data.records import Broken, Record
from distft.errors import UserError, first_line

RecordStream = Iterator[Record | Broken]

_BLANKS = re.compile(r"[ \t]+")  # not \s: a token may hold a no-break space


def refusal(broken: Broken) -> UserError:
    return UserError(f"{broken.where} {broken.why}")


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@contextmanager
def _opened(path: Path) -> Iterator[BufferedIOBase]:
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"data file {path} is not a complete gzip file ({first_line(error)}); download or compress it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read data file {path}: {error.strerror}") from error


def lines(path: Path) -> Iterator[str | Broken]:
    """Decoded lines with their ends, without a byte-order mark. Splits at \\n only: text may hold U+2028."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            yield _decoded(line, path, number)


def _decoded(line: bytes, path: Path, number: int) -> str | Broken:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return Broken(f"{path}:{number}", f"is not UTF-8 ({error}); convert the file to UTF-8")


def bare(line: str) -> str:
    """A line without its end."""
    return line.removesuffix("\n").removesuffix("\r")


def text(path: Path, keep_empty: bool = False) -> RecordStream:
    """Each line a record {"text": line}; lines of nothing but blanks are none, unless `keep_empty`."""
    for number, line in enumerate(lines(path), 1):
        if isinstance(line, Broken):
            yield line
        elif keep_empty or line.strip():
            yield Record(f"{path}:{number}", {"text": bare(line)})


def conll(path: Path) -> RecordStream:
    """Sentences {"tokens", "tags"} from lines of columns, first the token and last its tag; blank lines between."""
    sentence: list[tuple[int, str | Broken]] = []
    for number, line in enumerate(chain(lines(path), ("",)), 1):
        if isinstance(line, str) and (not line.strip() or line.startswith("-DOCSTART-")):
            if sentence:
                yield _sentence(path, sentence)
            sentence = []
        elif isinstance(line, Broken) or not (line.startswith("# ") and "=" in line):  # a comment of CoNLL-U
            sentence.append((number, line))


def _sentence(path: Path, found: Sequence[tuple[int, str | Broken]]) -> Record | Broken:
    tokens, tags = [], []
    begin, width = found[0][0], 0
    for number, line in found:
        if isinstance(line, Broken):
            return line
        columns = _BLANKS.split(line.strip(" \t\r\n"))
        if len(columns) == 1:
            return Broken(f"{path}:{number}", f"has the token {columns[0]!r} but its tag is missing; add a column")
        width = width or len(columns)
        if len(columns) != width:
            why = f"has {len(columns)} columns but its sentence began with {width} in line {begin}; make them equal"
            return Broken(f"{path}:{number}", why)
        tokens.append(columns[0])
        tags.append(columns[-1])
    return Record(f"{path}:{begin}", {"tokens": tokens, "tags": tags})


def jsonl(path: Path) -> RecordStream:
    for number, line in enumerate(lines(path), 1):
        if isinstance(line, Broken):
            yield line
        elif line.strip():
            yield _record(f"{path}:{number}", _parse(line.strip(), path, number))


def json_file(path: Path) -> RecordStream:
    """An array of objects, or SQuAD's articles; else it is read as JSON lines, which is what such files hold."""
    first = next((line for line in lines(path) if isinstance(line, Broken) or line.strip()), "")
    start = first.strip() if isinstance(first, str) else ""
    if start.startswith("["):
        for index, value in enumerate(_whole(path)):
            yield _record(f"{path}[{index}]", value)
    elif (articles := _articles(path, start)) is not None:
        yield from _squad(path, articles)
    else:
        yield from jsonl(path)


def _whole(path: Path) -> Any:
    """The one JSON value of a file."""
    read = list(lines(path))
    broken = next((line for line in read if isinstance(line, Broken)), None)
    value = broken or _parse("".join(line for line in read if isinstance(line, str)), path, 1)
    if isinstance(value, Broken):
        raise refusal(value)
    return value


def _articles(path: Path, start: str) -> Any:
    """The articles of a file that is one object of SQuAD's; None where it holds JSON lines. `start`: its first line."""
    first = _parse(start, path, 1)
    if not start.startswith("{") or not (isinstance(first, Broken) or _is_squad(first)):
        return None
    try:
        value = _whole(path)
    except UserError:
        if start == "{":  # no record, but an object over several lines, and here is what is wrong with it
            raise
        return None
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
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}"
        return Broken(place, f"is not valid JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested thousands deep
        return Broken(f"{path}:{line}", f"cannot be parsed as JSON: {error}")


def _record(where: str, value: Any) -> Record | Broken:
    if isinstance(value, Broken):
        return value
    if not isinstance(value, dict):
        return Broken(where, f"holds a JSON {type(value).__name__}, expected an object with named fields")
    return Record(where, value)


def table(path: Path, delimiter: str, columns: Sequence[str] = (), from_right: bool = False) -> RecordStream:
    """Columns with `delimiter` between them, named by the first line unless by `columns`. Only commas allow quotes.

    Args:
        from_right: the first column may hold the delimiter: only the last ones in a line divide it.
    """
    header = _each_once("data.columns", list(columns))
    for where, row in _quoted(path) if delimiter == "," else _plain(path, delimiter):
        if isinstance(row, str):
            if not header:
                raise refusal(Broken(where, row))
            yield Broken(where, row)
        elif not header:
            header = _each_once(where, row)
        else:
            if from_right and (more := len(row) - len(header)) > 0:
                row = [delimiter.join(row[: more + 1]), *row[more + 1 :]]
            yield _named(where, row, header, "data.columns names" if columns else "the header has", delimiter)


def _each_once(where: str, header: list[str]) -> list[str]:
    """The names as they are; spreadsheets leave some empty."""
    twice = next((name for name, number in Counter(header).items() if number > 1 and name.strip()), None)
    if twice is not None:
        raise UserError(f"{where} has the column {twice!r} more than once; rename one, or its values would be lost")
    return header


def _named(where: str, row: Sequence[str], header: Sequence[str], expected: str, delimiter: str) -> Record | Broken:
    if len(row) == len(header):
        return Record(where, dict(zip(header, row, strict=True)))
    advice = "quote fields with commas" if delimiter == "," else f"lines are split at {delimiter!r}, see data.delimiter"
    return Broken(where, f"has {len(row)} columns but {expected} {len(header)}; {advice}")


def _plain(path: Path, delimiter: str) -> Iterator[tuple[str, list[str] | str]]:
    """(where, columns, or why they cannot be read) of the lines that are not empty."""
    for number, line in enumerate(lines(path), 1):
        if isinstance(line, Broken):
            yield line.where, line.why
        elif columns := bare(line):
            yield f"{path}:{number}", columns.split(delimiter)


def _quoted(path: Path) -> Iterator[tuple[str, list[str] | str]]:
    """As `_plain`, for the csv module. After a stray quote, which takes in many lines, goes on in the next line."""
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than one long text
    rest, again, number = lines(path), deque[str | Broken](), 1
    while True:
        where = f"{path}:{number}"  # a quoted field may span lines; name the first
        taken: list[str | Broken] = []
        try:
            row = next(csv.reader(_taking(rest, again, taken), strict=True), None)
            if row is None:
                return
            if row:
                yield where, row
        except csv.Error as error:
            if isinstance(last := taken[-1], Broken):
                yield last.where, last.why
            else:
                yield where, f"is not valid CSV: {error}"
                again.extendleft(reversed(taken[1:]))
                del taken[1:]
        number += len(taken)


def _taking(rest: Iterator[str | Broken], again: deque[str | Broken], taken: list[str | Broken]) -> Iterator[str]:
    while line := again.popleft() if again else next(rest, None):
        taken.append(line)
        if isinstance(line, Broken):
            raise csv.Error
        yield line


def parquet(path: Path) -> RecordStream:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    source: Any = path
    if is_gzip(path):
        with _opened(path) as file:
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
