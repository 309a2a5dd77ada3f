"""The index of records: read block by block, a file gives what it gives when it is read from its beginning."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from distft.data import record_index
from distft.data.record_blocks import BLOCK
from distft.data.record_index import RecordIndex, index_of
from distft.data.records import Broken, Record
from distft.data.sources import Source, read_leniently
from distft.data.token_cache import root_of
from distft.errors import UserError


def whole(index: RecordIndex) -> list[Record | Broken]:
    found = []
    for block in range(len(index)):
        assert index.first(block) == len(found)
        read = list(index.read(block))
        assert index.count(block) == len(read) <= BLOCK
        found += read
    assert len(found) == index.records
    return found


def equal(path: Path, cache: Path, **how: Any) -> RecordIndex:
    source = Source(str(path), **how)
    index = index_of([source], str(cache))
    assert whole(index) == list(read_leniently(source))
    return index


def lines(number: int, seed: int = 0) -> bytes:
    """Objects of different lengths with blank lines of all kinds, broken ones, and one that is not UTF-8 in between."""
    chance = random.Random(seed)
    found = []
    for at in range(number):
        found.append(json.dumps({"text": f"récord {at} " + "x" * chance.randrange(300)}, ensure_ascii=False).encode())
        found += chance.choices(
            [b"", b"  ", "\u3000\u00a0".encode(), b"\x1c", b"\t{", b'["a"]', b"\xff\xfe"], k=chance.randrange(2)
        )
    return b"\n".join(found)


@pytest.mark.parametrize("number", [1, BLOCK - 1, BLOCK, BLOCK + 1, 1000])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\n \n"])
def test_lines(tmp_path: Path, number: int, end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distft.data.record_blocks._CHUNK", 1000)
    (tmp_path / "a.jsonl").write_bytes(lines(number) + end)
    assert equal(tmp_path / "a.jsonl", tmp_path).records >= number


@pytest.mark.parametrize("how", [{}, {"format": "lines"}, {"encoding": "latin-1"}])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_texts(tmp_path: Path, how: dict[str, Any], mark: bytes) -> None:
    if mark and "encoding" in how:
        return
    path = tmp_path / "a.txt"
    path.write_bytes(mark + "\n \nein Satz\n\u00a0\nnoch einer\n\n".encode(how.get("encoding", "utf-8")) * 100)
    assert equal(path, tmp_path / "cache", **how).records == (600 if "format" in how else 200)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_records_that_a_filter_leaves_out_have_no_number(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(table(1500), path)
    else:
        rows = b"".join(json.dumps({"kind": f"kind {at // 70}"}).encode() + b"\n{\n" for at in range(350))
        path.write_bytes(gzip.compress(rows) if suffix.endswith("gz") else rows)
    every = equal(path, tmp_path / "cache").records
    some = equal(path, tmp_path / "cache", filter={"kind": ["kind 1", "kind 3"]}).records
    assert 0 < some < every
    assert index_of([Source(str(path))], str(tmp_path / "cache")).records == every


def test_lines_that_are_compressed(tmp_path: Path) -> None:
    content = lines(700)
    (tmp_path / "a.jsonl").write_bytes(content)
    with pyarrow.CompressedOutputStream(str(tmp_path / "c.jsonl.zst"), "zstd") as file:
        file.write(content)
    assert equal(tmp_path / "c.jsonl.zst", tmp_path / "cache").files[0].store.suffix == ".zst"
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content[:30000]) + gzip.compress(content[30000:]))
    index = equal(tmp_path / "b.jsonl.gz", tmp_path / "cache")
    assert index.records == equal(tmp_path / "a.jsonl", tmp_path / "cache").records
    assert index.files[0].store.suffix == ".zst"
    [first, *_] = index.read(3)
    assert first.where.startswith(f"{tmp_path / 'b.jsonl.gz'}:")


def table(rows: int) -> pyarrow.Table:
    return pyarrow.table(
        {
            "text": [f"row {row}" for row in range(rows)],
            "turns": [[{"role": "user", "content": str(row)}] * (row % 3) for row in range(rows)],
            "bytes": [bytes([row % 256]) for row in range(rows)],
            "kind": pyarrow.array([f"kind {row % 5}" for row in range(rows)]).dictionary_encode(),
        }
    )


@pytest.mark.parametrize("group", [10, 64, 100, 5000])
def test_tables(tmp_path: Path, group: int) -> None:
    pyarrow.parquet.write_table(table(1500), tmp_path / "a.parquet", row_group_size=group)
    assert equal(tmp_path / "a.parquet", tmp_path).records == 1500


def test_several_files_are_one_source(tmp_path: Path) -> None:
    sources = []
    for number in range(5):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(lines(60 * number, number))
        sources.append(Source(str(path)))
    index = index_of(sources, str(tmp_path / "cache"))
    assert whole(index) == [record for source in sources for record in read_leniently(source)]


def test_an_index_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(300)))
    first = index_of([Source(str(path))], str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(record_index, "_write_copy", None)
        again = index_of([Source(str(path))], str(tmp_path))
    assert whole(again) == whole(first)
    path.write_bytes(gzip.compress(lines(200)))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz changed while being read; run the same command again"):
        again.read(0)
    assert index_of([Source(str(path))], str(tmp_path)).records < first.records


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(300))
    source = Source(str(tmp_path / "a.jsonl"))
    records = whole(index_of([source], str(tmp_path)))
    [path] = root_of(str(tmp_path)).glob("index-*.npz")
    for damaged in (b"", path.read_bytes()[:-50]):
        path.write_bytes(damaged)
        assert whole(index_of([source], str(tmp_path))) == records


def test_a_copy_that_is_gone_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(300)))
    source = Source(str(tmp_path / "a.jsonl.gz"))
    index = index_of([source], str(tmp_path))
    records = whole(index)
    os.remove(index.files[0].store)
    assert whole(index_of([source], str(tmp_path))) == records


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.csv", b"text\na\n", "cannot read .*a.csv record by record; use .jsonl"),
        ("a.json", b"[]", "cannot read .*a.json record by record"),
        ("a.conll", b"a O\n", "cannot read .*a.conll record by record"),
        ("a.jsonl", b"\xff\xfe{\x00}\x00", "cannot read .*a.jsonl, whose encoding is utf-16-le; convert it to UTF-8"),
        ("a.jsonl", b"\n \n", "a.jsonl has no records"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 99, mtime=0)[:-9], "a.jsonl.gz is not a complete gzip file"),
        ("a.parquet", b"PAR1", "a.parquet cannot be read as parquet"),
    ],
)
def test_what_has_no_blocks_is_refused(tmp_path: Path, name: str, content: bytes, error: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=error):
        index_of([Source(str(tmp_path / name))], str(tmp_path / "cache"))
    assert not list(root_of(str(tmp_path / "cache")).glob("*.zst*"))


def test_parallel_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a\n")
    with pytest.raises(UserError, match=r"^data\.streaming reads files, and .* is none; use \.jsonl"):
        index_of([Source({"source": str(tmp_path / "a"), "target": str(tmp_path / "a")})], str(tmp_path))
