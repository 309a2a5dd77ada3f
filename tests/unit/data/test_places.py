"""Folders and patterns of data files, compressed ones, and filters: one source of several files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from distft.data import sources
from distft.data.sources import Source, fingerprint, read, read_piece
from distft.errors import UserError
from distft.recipe.sources import Condition

ROWS = [{"text": f"row {number}", "number": number, "lang": "de" if number % 3 else "en"} for number in range(40)]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def written(folder: Path) -> Path:
    """Four files of ten rows, one per form."""
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(lines(ROWS[:10]))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[10:20])))
    codec = pyarrow.Codec("zstd")
    frames = [codec.compress(lines(part)).to_pybytes() for part in (ROWS[20:23], ROWS[23:30])]
    (folder / "c.jsonl.zst").write_bytes(b"".join(frames))
    (folder / "sub").mkdir()
    (folder / "sub" / "d.jsonl").write_bytes(lines(ROWS[30:]))
    (folder / "README.md").write_text("not data")
    (folder / ".hidden.jsonl").write_text("not data")
    (folder / "_SUCCESS").touch()
    return folder


def fields(source: Source) -> list[dict[str, Any]]:
    return [record.fields for record in read(source)]


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    assert fields(Source(str(folder))) == ROWS
    places = [record.where for record in read(Source(str(folder)))]
    assert places[9:11] == [f"{folder}/a.jsonl:10", f"{folder}/b.jsonl.gz:1"]


@pytest.mark.parametrize(("pattern", "rows"), [("*.jsonl*", ROWS[:30]), ("**/*.jsonl", ROWS[:10] + ROWS[30:])])
def test_a_pattern_is_what_matches(tmp_path: Path, pattern: str, rows: list[Any]) -> None:
    assert fields(Source(f"{written(tmp_path / 'data')}/{pattern}")) == rows


@pytest.mark.parametrize("size", [1, 300, 700, 10**6])
def test_pieces_are_read_as_the_whole(tmp_path: Path, size: int) -> None:
    source = Source(str(written(tmp_path / "data")))
    pieces = sources.pieces(source, size)
    assert [row for piece in pieces for row in read_piece(piece)] == list(read(source))
    assert len(pieces) == {1: 22, 10**6: 1}.get(size, len(pieces))
    assert all(piece for piece in pieces)


def test_the_content_of_all_files_is_known(tmp_path: Path) -> None:
    folder = written(tmp_path / "data")
    before = fingerprint(Source(str(folder)))
    assert fingerprint(Source(f"{folder}/**/*.jsonl*")) == before
    assert fingerprint(Source(str(folder), filter={"lang": "de"})) != before
    (folder / "sub" / "d.jsonl").rename(folder / "e.jsonl")
    assert fingerprint(Source(str(folder))) == before  # the same records in the same order
    (folder / "e.jsonl").write_bytes(lines(ROWS[31:]))
    assert fingerprint(Source(str(folder))) != before


def complaint(source: Source) -> str:
    with pytest.raises(UserError) as error:
        list(read(source))
    return str(error.value)


def test_what_a_folder_does_not_tell_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    assert "holds no data files" in complaint(Source(str(folder)))
    (folder / "train-1.jsonl").write_bytes(lines(ROWS))
    (folder / "train-2.jsonl").write_bytes(lines(ROWS))
    (folder / "trained.jsonl").write_bytes(lines(ROWS))
    assert len(fields(Source(str(folder)))) == 120
    (folder / "test.jsonl").write_bytes(lines(ROWS))
    assert f"holds the splits test and train, by the names of its files; say which to read, such as {folder}/" in (
        complaint(Source(str(folder)))
    )
    (folder / "more.csv").write_text("a,b\n")
    assert f"holds .csv and .jsonl files; say which to read: {folder}/**/*.csv" in complaint(Source(str(folder)))
    assert f"no data file matches {folder}/*.tsv" in complaint(Source(f"{folder}/*.tsv"))


@pytest.mark.parametrize("cut", [10, 40])
def test_a_zst_that_is_cut_off_or_none_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(pyarrow.Codec("zstd").compress(lines(ROWS)).to_pybytes()[:-cut])
    assert f"data file {path} is not a complete zstd file (Truncated" in complaint(Source(str(path)))
    path.write_bytes(b"no frame of zstd")
    assert f"data file {path} is not a complete zstd file (ZSTD" in complaint(Source(str(path)))


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({"lang": "en"}, range(0, 40, 3)),
        ({"lang": ["en", "de"]}, range(40)),
        ({"lang": "en", "number": Condition(min=30)}, [30, 33, 36, 39]),
        ({"number": Condition(min=3, max=5.5)}, [3, 4, 5]),
        ({"number": Condition(max=5, none_of=[0, 2])}, [1, 3, 4, 5]),
        ({"lang": Condition(none_of=["de"])}, range(0, 40, 3)),
        ({"number": [1, 2.0]}, [1, 2]),
        ({"number": True}, []),
        ({"absent": None}, range(40)),
        ({"absent": Condition(min=0)}, []),
        ({"absent": Condition(none_of=[None])}, []),
    ],
)
def test_a_filter_takes_what_meets_all_conditions(tmp_path: Path, wanted: Any, numbers: Any) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    found = fields(Source(str(tmp_path / "a.jsonl"), filter=wanted))
    assert [row["number"] for row in found] == list(numbers)


def test_numbers_of_a_table_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,stars\nx,5\ny,4.5\nz,none\n")
    for wanted, texts in (({"stars": Condition(min=4.5)}, ["x", "y"]), ({"stars": 5}, ["x"]), ({"stars": "5"}, ["x"])):
        found = fields(Source(str(tmp_path / "a.csv"), filter=wanted))  # type: ignore[arg-type]
        assert [row["text"] for row in found] == texts
