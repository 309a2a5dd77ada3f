"""Bad records: one refuses the data, or all are left out, counted and listed, up to the budget."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distft.data import encoding
from distft.data.bad_records import FILE, Bad, BadRecords, listing, usable
from distft.data.cache_writer import CacheWriter
from distft.data.corpus import Corpus
from distft.data.records import Document, Encoded, Record
from distft.data.sources import Source
from distft.data.token_cache import build_cache, left_out
from distft.errors import UserError


class Stop(Exception):
    pass


class Numbers:
    """A document for a record with a number; others are refused."""

    digest, columns = "numbers", {"number": "int64"}

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        value = record.fields["number"]
        if not isinstance(value, int):
            raise UserError(f"{record.where}: number must be a number")
        return Encoded([Document({"number": np.array([value])}, 1)] if value >= 0 else [], {"read": 1})


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    def make(source: Source, cache: str = "cache", stop: Callable[[], None] = lambda: None) -> Path:
        return build_cache(source, Numbers(), str(tmp_path / cache), stop, lambda number: None)

    return make


Build = Callable[..., Path]
LINES = ['{"number": 0}', "{broken", '{"number": "2"}', '{"number": 3}', "[4]", '{"number": -5}', "", '{"number": 6}']


def source_of(folder: Path, lines: list[str] = LINES, budget: float | None = 1.0, name: str = "a.jsonl") -> Source:
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return Source(str(folder / name), bad_budget=budget)


def test_bad_records_are_left_out_and_the_others_keep_their_indexes(tmp_path: Path, build: Build) -> None:
    source = source_of(tmp_path)
    folder = build(source)
    corpus = Corpus.open(folder)
    assert [(corpus.document(i).record, int(corpus.document(i)["number"][0])) for i in range(len(corpus))] == [
        (0, 0),
        (3, 3),
        (6, 6),
    ]
    assert (corpus.meta.records, corpus.meta.documents, corpus.meta.notes) == (7, 3, {"read": 4})
    file = f"{tmp_path}/a.jsonl"
    named = [
        Bad(
            1, f"{file}:2", f"{file}:2 is not valid JSON: Expecting property name enclosed in double quotes (column 2)"
        ),
        Bad(2, f"{file}:3", f"{file}:3: number must be a number"),
        Bad(4, f"{file}:5", f"{file}:5 holds a JSON list, expected an object with named fields"),
    ]
    assert left_out(folder, source) == named


def test_another_file_with_the_same_bytes_has_its_own_name_in_the_list(tmp_path: Path, build: Build) -> None:
    first, second = source_of(tmp_path), source_of(tmp_path, name="b.jsonl")
    assert build(first) == build(second)
    bad = left_out(build(second), second)
    assert [one.where for one in bad] == [f"{tmp_path}/b.jsonl:{line}" for line in (2, 3, 5)]
    assert bad[1].error == f"{tmp_path}/b.jsonl:3: number must be a number"


def test_the_budget_is_a_share_of_all_records(tmp_path: Path, build: Build) -> None:
    file, good = f"{tmp_path}/a.jsonl", '{"number": 1}'
    cases = [(0.29, 29, 100, True), (0.29, 30, 100, False), (0.0, 0, 9, True), (0.0, 1, 10, False), (1.0, 9, 10, True)]
    for number, (budget, bad, records, passes) in enumerate(cases):
        source = source_of(tmp_path, ["[]"] * bad + [good] * (records - bad), budget)
        if passes:
            assert len(Corpus.open(build(source, f"{number}"))) == records - bad
            continue
        with pytest.raises(BadRecords) as raised:
            build(source, f"{number}")
        first = "; ".join(f"{file}:{i} holds a JSON list, expected an object with named fields" for i in (1, 2, 3))
        assert str(raised.value) == (
            f"{bad} of the {records} records of {file} are bad, more than data.bad_budget {budget:g} allows; correct "
            f"them, or raise it; the first: {first if bad > 3 else first.split('; ')[0]}"
        )
        assert [one.record for one in raised.value.bad] == list(range(bad))
        assert not list((tmp_path / f"{number}" / "tokens").glob("*/meta.json"))


def test_one_bad_record_refuses_the_data_unless_it_may_be_left_out(tmp_path: Path, build: Build) -> None:
    """Also where another run has left it out: they share the cache, for good data are the same under both."""
    strict = source_of(tmp_path, budget=None)
    for _ in range(2):  # before there is a cache, and with what the other one has filled
        with pytest.raises(UserError, match=rf"^{tmp_path}/a.jsonl:2 is not valid JSON"):
            build(strict)
        build(source_of(tmp_path))
    with pytest.raises(UserError, match=r"^3 of the 7 records .* data.bad_budget 0.4 allows"):
        build(source_of(tmp_path, budget=0.4))
    good = ['{"number": 1}'] * 3
    assert build(source_of(tmp_path, good, None)) == build(source_of(tmp_path, good, 0.5))
    assert not (build(source_of(tmp_path, good, 0.5)) / FILE).exists()


def of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


MANY = [f'{{"number": {number}}}' if number % 7 else f"broken {number}" for number in range(150)]


def test_stopped_and_killed_encodes_leave_out_the_same(tmp_path: Path, build: Build, monkeypatch: Any) -> None:
    source, calls = source_of(tmp_path, MANY), []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 51:
            raise Stop

    at_once = of_files(build(source, "at once"))
    monkeypatch.setattr(encoding, "_KEEP_EVERY", -1.0)
    monkeypatch.setattr(encoding, "_EVERY", -1.0)
    with pytest.raises(Stop):
        build(source, stop=stop)
    leave_out = CacheWriter.leave_out

    def killed(self: CacheWriter, where: str, error: str) -> None:
        leave_out(self, where, error)
        if self.records > 120:
            self._stack.close()  # all is in the files, and more than was kept
            os._exit(9)

    if (pid := os.fork()) == 0:
        monkeypatch.setattr(CacheWriter, "leave_out", killed)
        build(source)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert of_files(build(source)) == at_once
    assert [one.record for one in left_out(build(source), source)] == list(range(0, 150, 7))


def test_what_a_lenient_run_began_is_refused_by_a_strict_one(tmp_path: Path, build: Build) -> None:
    source, root = source_of(tmp_path, MANY), tmp_path / "cache" / "tokens"

    def stop() -> None:
        if list(root.glob("*.part/number.column.bin")):
            raise Stop

    with pytest.raises(Stop):
        build(source, stop=stop)
    with pytest.raises(UserError, match=rf"^{tmp_path}/a.jsonl:1 is not valid JSON"):
        build(source_of(tmp_path, MANY, None))


def test_usable_records_are_the_same_everywhere(tmp_path: Path) -> None:
    def use(record: Record) -> int:
        return Numbers().encode(record).notes["read"]

    assert [record.fields["number"] for record, _ in usable(source_of(tmp_path), use)] == [0, 3, -5, 6]
    with pytest.raises(UserError, match=r"a.jsonl:2 is not valid JSON"):
        list(usable(source_of(tmp_path, budget=None), use))
    with pytest.raises(UserError, match=r"a.jsonl:1: number must be a number"):
        list(usable(source_of(tmp_path, LINES[2:], None), use))


def test_the_list_of_a_run_holds_those_of_all_its_data(tmp_path: Path) -> None:
    path, lenient, strict = tmp_path / FILE, Source("/d", bad_budget=0.1), Source("/d")

    def listed() -> list[tuple[str, int]]:
        return [(line["data"], line["record"]) for line in map(json.loads, path.read_text().splitlines())]

    def note(name: str, *records: int) -> None:
        with listing(path, name, lenient) as bad:
            bad += [Bad(record, f"/d:{record}", f"/d:{record} \u2028 is \ud83d bad") for record in records]

    note("train")
    assert not path.exists()
    note("train", 3, 5)
    note("eval", 1)
    assert listed() == [("train", 3), ("train", 5), ("eval", 1)]
    assert json.loads(path.read_text().splitlines()[0]) == {
        "data": "train",
        "record": 3,
        "where": "/d:3",
        "error": "/d:3 \u2028 is \ud83d bad",
    }
    note("train", 3)  # it was corrected
    assert listed() == [("eval", 1), ("train", 3)]
    many = BadRecords("too many", [Bad(7, "/d:8", "/d:8 is bad")])
    with pytest.raises(UserError, match=f"^too many; all of them: {path}$"), listing(path, "train", lenient):
        raise many
    assert listed() == [("eval", 1), ("train", 7)]
    with pytest.raises(UserError, match=r"^too many$"), listing(path, "eval", strict):
        raise many
    assert listed() == [("eval", 1), ("train", 7)]
    note("train")
    note("eval")
    assert not path.exists()
