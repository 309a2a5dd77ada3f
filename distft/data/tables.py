"""Text files of columns: with commas, tabs or any other delimiter between them, and quotes around cells or none."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from distft.data import text_lines
from distft.data.records import Broken, Record
from distft.data.text_lines import bare
from distft.errors import UserError

_HEAD = 1000  # lines by which the form of a file is told
_NUMBER = re.compile(r"\s*[-+]?[\d.,]*\s*")


def delimiter_of(path: Path, usual: str, encoding: str | None) -> str:
    """What divides a file by its header: semicolons or tabs in a .csv, as spreadsheets write it in much of Europe."""
    first = next((line for line in text_lines.lines(path, encoding) if isinstance(line, str) and line.strip()), "")
    return next((one for one in ";\t" if usual == "," and one in first and "," not in first), usual)


def is_quoted(path: Path, delimiter: str, encoding: str | None) -> bool:
    """True if quotes around cells are no part of them, by the first lines: either all texts of some column are in
    quotes, or just those cells that need them, because a delimiter, a quote or the end of a line is in them."""
    if len(delimiter) != 1 or delimiter in "\n\r":
        return False
    head = [line for line in islice(text_lines.lines(path, encoding), _HEAD) if isinstance(line, str)]
    return quotes_in(head, delimiter)


def quotes_in(head: Sequence[str], delimiter: str) -> bool:
    """`is_quoted` for lines with their ends."""
    if not any('"' in line for line in head):
        return False
    rows = _raw_rows("".join(head), delimiter, whole=len(head) < _HEAD)
    if not rows:
        return False
    cells = [cell for row in rows for cell in row]
    if any('"' in cell for cell in cells if not cell.startswith('"')):
        return False
    quoted = [cell for cell in cells if cell.startswith('"')]
    if any("\n" in cell for cell in quoted) and len({line.count(delimiter) for line in head if line.strip()}) == 1:
        return False  # each line is whole as it is
    if all(any(sign in cell[1:-1] for sign in (delimiter, '"', "\n")) for cell in quoted):
        return True
    width = Counter(map(len, rows)).most_common(1)[0][0]
    columns = list(zip(*(row for row in rows[1:] if len(row) == width), strict=True))
    return any(len(column) > 1 and _all_quoted(column) for column in columns) and all(
        _all_quoted(column) or not any(cell.startswith('"') for cell in column) for column in columns
    )


def _all_quoted(column: Sequence[str]) -> bool:
    quoted = sum(cell.startswith('"') for cell in column)
    return quoted > 0 and all(cell.startswith('"') or _NUMBER.fullmatch(cell) for cell in column)


def _raw_rows(text: str, delimiter: str, whole: bool) -> list[list[str]]:
    """Rows of cells with their quotes; none if a quote begins a cell and ends in none.

    Args:
        whole: the text is all of the file, and so ends no cell early.
    """
    sign = re.escape(delimiter)
    cell = re.compile(rf'("(?:[^"]|"")*"(?={sign}|\r?\n|$)|[^"{sign}\n][^{sign}\n]*|)({sign}|\r?\n|$)')
    rows: list[list[str]] = [[]]
    at = 0
    while at < len(text):
        found = cell.match(text, at)
        if found is None:
            return [] if whole else rows[:-1]
        rows[-1].append(found[1].removesuffix("\r"))
        at = found.end()
        if found[2].endswith("\n"):
            rows.append([])
    return [row for row in rows if row not in ([], [""])]


def table(
    path: Path,
    delimiter: str,
    columns: Sequence[str] = (),
    from_right: bool = False,
    quoted: bool = False,
    encoding: str | None = None,
) -> Iterator[Record | Broken]:
    """Columns with `delimiter` between them, named by the first line unless by `columns`.

    Args:
        from_right: the first column may hold the delimiter: only the last ones in a line divide it.
        quoted: cells may be in quotes; with commas they always may.
    """
    header = _each_once("data.columns", list(columns))
    quoted = quoted or delimiter == ","
    for where, row in _quoted(path, delimiter, encoding) if quoted else _plain(path, delimiter, encoding):
        if isinstance(row, str):
            if not header:
                raise UserError(f"{where} {row}")
            yield Broken(where, row)
        elif not header:
            header = _each_once(where, row)
        else:
            if from_right and not quoted and (more := len(row) - len(header)) > 0:
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


def _plain(path: Path, delimiter: str, encoding: str | None) -> Iterator[tuple[str, list[str] | str]]:
    """(where, columns, or why they cannot be read) of the lines that are not empty."""
    for number, line in enumerate(text_lines.lines(path, encoding), 1):
        if isinstance(line, Broken):
            yield line.where, line.why
        elif columns := bare(line):
            yield f"{path}:{number}", columns.split(delimiter)


def _quoted(path: Path, delimiter: str, encoding: str | None) -> Iterator[tuple[str, list[str] | str]]:
    """As `_plain`, for the csv module. After a stray quote, which takes in many lines, goes on in the next line."""
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than one long text
    rest, again, number = text_lines.lines(path, encoding), deque[str | Broken](), 1
    while True:
        where = f"{path}:{number}"  # a quoted field may span lines; name the first
        taken: list[str | Broken] = []
        try:
            row = next(csv.reader(_taking(rest, again, taken), delimiter=delimiter, strict=True), None)
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
