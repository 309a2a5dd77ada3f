"""How a data file is divided into records: guesses the keys of `data` that a text file needs to be read."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from distft.data import places, readers, tables, text_lines
from distft.data.records import Broken
from distft.errors import UserError

LOOKED_AT = 200  # records, or lines
_DELIMITERS = ("\t", "@", "|", ";", ",")  # the likeliest first
_LONGEST_NAME = 40  # characters of the name of a column
_MOST_WORDS = 4  # in the name of a column
_SAME_TAG = re.compile(r"[BIOMESLU](-\S+)?")


@dataclass(frozen=True)
class Layout:
    """How a file is divided.

    Attributes:
        keys: `format` and `delimiter` of a recipe, as far as the suffix does not say them.
        width: columns of a table without a header; 0 for any other file.
        doubts: what is not sure, a sentence each.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    width: int = 0
    doubts: list[str] = field(default_factory=list)


def layout_of(path: Path, task: str, names: set[str]) -> Layout:
    """The layout of a file.

    Args:
        task: the `task.type` that is to read it.
        names: words that name a column for this task, normalised: they tell a header from data.

    Raises:
        UserError: the file cannot be read as text and its suffix says that it is text.
    """
    suffix = places.suffix_of(path)
    if path.is_dir() or suffix in (".jsonl", ".json", ".parquet", ".conll", ".bio", ".iob"):
        return Layout()
    lines = _first_lines(path)
    if task == "token-classification" and suffix not in (".csv", ".tsv") and _has_tags(lines):
        return Layout({"format": "conll"})
    usual = {".csv": ",", ".tsv": "\t"}.get(suffix)
    delimiter = _delimiter(lines, usual and tables.delimiter_of(path, usual, None))
    reads_lines = task in ("causal-lm", "masked-lm")
    if usual is None and (reads_lines or delimiter is None):
        return _of_lines(path, suffix)
    return _of_table(lines, delimiter or usual or "", usual, names)


def normal(name: str) -> str:
    """A column's name as it is compared: small letters and digits."""
    return re.sub(r"[\W_]+", "", name.lower())


def _of_lines(path: Path, suffix: str) -> Layout:
    if suffix in places.TEXTS:
        return Layout()
    return Layout({"format": "lines"}, doubts=[f"{path.name} is read as one text per line (data.format)"])


def _of_table(lines: Sequence[str], delimiter: str, usual: str | None, names: set[str]) -> Layout:
    keys = {} if delimiter == usual else {"delimiter": delimiter}
    rows = _rows(lines, delimiter)
    first, rest = rows[0], rows[1:]
    header = _header(first, rest, names)
    if header is None:
        header = True
        doubts = [f"the first line is taken for the names of the columns: {', '.join(first)}"]
    elif header:
        doubts = []
    else:
        doubts = [
            f"the first line looks like data, so the columns have names of ours: {_short(delimiter.join(first))!r}"
        ]
    width = Counter(map(len, rows)).most_common(1)[0][0]
    if usual is None and width > 1 and delimiter != ",":
        width = min(map(len, rows))  # the first column may hold the delimiter
    return Layout(keys, 0 if header else width, doubts)


def _header(first: Sequence[str], rest: Sequence[Sequence[str]], names: set[str]) -> bool | None:
    """True if a row names the columns below it, False if it is data, None if it may be either."""
    if len(set(first)) < len(first) or any(_is_number(cell) for cell in first):
        return False
    if any(len(cell) > _LONGEST_NAME or len(cell.split()) > _MOST_WORDS for cell in first):
        return False
    if any(normal(cell) in names for cell in first):
        return True
    columns = list(zip(*(row for row in rest if len(row) == len(first)), strict=True))
    if any(first[index] in column for index, column in enumerate(columns)):
        return False
    return True if any(all(map(_is_number, column)) for column in columns) else None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d+([.,]\d+)?\s*", text) is not None


def _first_lines(path: Path) -> list[str]:
    """Lines that are not empty but for CoNLL's, which are kept as ''."""
    found = list(islice(text_lines.lines(path), LOOKED_AT))
    broken = next((line for line in found if isinstance(line, Broken)), None)
    whole = [text_lines.bare(line) for line in found if isinstance(line, str)]
    if broken is not None and len(whole) <= len(found) / 2:
        raise readers.refusal(broken)
    if not any(line.strip() for line in whole):
        raise UserError(f"data file {path} is empty; name another with --data")
    return whole


def _has_tags(lines: Sequence[str]) -> bool:
    """True for lines of columns with a token first and a tag last."""
    words = [
        line.split()
        for line in lines
        if line.strip() and not line.startswith(("-DOCSTART-", "# ", "#\t", "#begin", "#end"))
    ]
    if not words or len({len(columns) for columns in words}) > 2:
        return False
    tagged = sum(len(columns) > 1 and _SAME_TAG.fullmatch(columns[-1]) is not None for columns in words)
    between = sum(not line.strip() for line in lines)
    return tagged > 0.9 * len(words) or (between > 1 and all(1 < len(columns) <= 10 for columns in words))


def _delimiter(lines: Sequence[str], usual: str | None) -> str | None:
    """What divides the lines of a table; None if nothing does."""
    filled = [line for line in lines if line.strip()]
    if usual is not None and any(usual in line for line in filled):
        return usual
    for delimiter in _DELIMITERS:
        if all(delimiter in line for line in filled):
            last = Counter(line.rpartition(delimiter)[2].strip() for line in filled)
            even = len({line.count(delimiter) for line in filled}) == 1
            if even or (len(last) <= max(2, len(filled) / 4) and max(map(len, last)) <= _LONGEST_NAME):
                return delimiter
    return None


def _rows(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    filled = [line for line in lines if line.strip()]
    ends = [f"{line}\n" for line in lines]
    if delimiter != "," and not (len(delimiter) == 1 and tables.quotes_in(ends, delimiter)):
        return [line.split(delimiter) for line in filled]
    return [row for row in csv.reader(ends, delimiter=delimiter) if row]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
