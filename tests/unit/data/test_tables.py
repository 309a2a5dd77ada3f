"""Quotes in tables, and semicolons in .csv files."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from distft.data.sources import Source, fingerprint, read

ROWS = [
    ["text", "label"],
    ['she said "no"', "neg"],
    ["two\nlines; and more,\tor less", "pos"],
    ["plain", "pos"],
    ["it's 5\" long", "neg"],
]
DICTS = [dict(zip(ROWS[0], row, strict=True)) for row in ROWS[1:]]


def of(path: Path, **how: Any) -> list[dict[str, Any]]:
    return [record.fields for record in read(Source(str(path), **how))]


def written(path: Path, rows: list[list[str]], **how: Any) -> Path:
    file = io.StringIO()
    csv.writer(file, **how).writerows(rows)
    path.write_bytes(file.getvalue().encode())
    return path


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "sign", "how"),
    [("a.tsv", "\t", {}), ("a.csv", ";", {"delimiter": ";"}), ("a.csv", ";", {}), ("a.txt", "|", {"delimiter": "|"})],
)
def test_what_writers_of_tables_put_into_quotes(
    tmp_path: Path, quoting: Any, end: str, name: str, sign: str, how: dict[str, str]
) -> None:
    path = written(tmp_path / name, ROWS, delimiter=sign, lineterminator=end, quoting=quoting)
    assert of(path, **how) == DICTS
    body = written(tmp_path / name, ROWS[1:], delimiter=sign, lineterminator=end, quoting=quoting)
    assert of(body, columns=("text", "label"), delimiter=sign) == DICTS
    plain = Source(str(path), detect=False, **how)
    assert fingerprint(plain) != fingerprint(Source(str(path), **how))


@pytest.mark.parametrize(
    "text",
    [
        'text\tlabel\n"Inception" is long\tpos\nso "good"\tneg\n',  # words in quotes
        'text\tlabel\n"Great movie!"\tpos\nbad\tneg\n',  # one text that is a quotation
        'text\tlabel\n"never closed\tpos\nbad\tneg\n',
        'text\tlabel\n"a ""b"" c"\tpos\n5" wide\tneg\n',  # no writer leaves the last one as it is
        'text\tlabel\na\t"pos\nb\t"\n',
        "text\tlabel\nit's\tpos\n",
    ],
)
def test_quotes_that_belong_to_texts_stay(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(text)
    lines = [line.split("\t") for line in text.splitlines()[1:]]
    assert of(path) == [{"text": cell, "label": label} for cell, label in lines]
    assert fingerprint(Source(str(path))) == fingerprint(Source(str(path), detect=False))


def test_a_column_of_quoted_texts_beside_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"so good"\n2\t"bad"\n')
    assert of(path) == [{"id": "1", "text": "so good"}, {"id": "2", "text": "bad"}]


def test_an_earlier_run_reads_as_it_did(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('"text"\n"a"\n"b"\n')
    assert of(path, detect=False) == [{'"text"': '"a"'}, {'"text"': '"b"'}]
    assert of(path) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize("sign", [";", "\t"])
def test_a_csv_without_commas_in_its_header_is_divided_by_what_is_there(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text{sign}label\ngut, aber teuer{sign}1,5\n")
    assert of(path) == [{"text": "gut, aber teuer", "label": "1,5"}]
    path.write_text(f"text,label{sign}x\na,b{sign}c\n")
    assert of(path) == [{"text": "a", f"label{sign}x": f"b{sign}c"}]
