"""Files that records name: another content is another cache, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from distft.data import named_files, sources
from distft.data.audio import files_of
from distft.data.corpus import Corpus
from distft.data.records import Document, Encoded, Record
from distft.data.sources import Source
from distft.data.token_cache import build_cache
from distft.errors import UserError


class Letters:
    """The letters of the file that the column `audio` names, in the place of its sound."""

    digest, columns = "letters", {"letters": "uint8"}

    def __init__(self, after: Callable[[], None] = lambda: None) -> None:
        self.encoded, self._after = 0, after

    def files(self, record: Record) -> Sequence[Path]:
        return files_of(record, {})

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        self.encoded += 1
        [path] = self.files(record)
        if not path.exists():
            raise UserError(f"{record.where}: {path} does not exist")
        content = path.read_bytes()
        self._after()
        return Encoded([Document({"letters": [*content]}, len(content))])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "data" / "sounds").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / "data" / "sounds" / name).write_text(name * 3)
    records = [{"audio": f"sounds/{name}"} for name in ("one", "two", "one")]
    (tmp_path / "data" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source(str(tmp_path / "data" / "a.jsonl"), bad_budget=0.9)


def build(source: Source, encoder: Letters | None = None) -> Path:
    cache = Path(source.name).parents[1] / "cache"
    return build_cache(source, encoder or Letters(), str(cache), lambda: None, lambda done: None)


def sound(source: Source, name: str) -> Path:
    return Path(source.name).parent / "sounds" / name


def letters(folder: Path) -> list[str]:
    corpus = Corpus.open(folder)
    return [corpus.document(i)["letters"].tobytes().decode() for i in range(len(corpus))]


def test_a_changed_file_is_encoded_anew_and_the_one_before_is_found_again(source: Source) -> None:
    first = build(source)
    assert letters(first) == ["oneoneone", "twotwotwo", "oneoneone"]
    path = sound(source, "two")
    before = path.stat()
    path.write_text("TWOtwotwo")  # as many bytes
    encoder = Letters()
    second = build(source, encoder)
    assert encoder.encoded == 3
    assert second != first
    assert letters(second) == ["oneoneone", "TWOtwotwo", "oneoneone"]
    path.write_text("twotwotwo")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    encoder = Letters()
    assert build(source, encoder) == first
    assert encoder.encoded == 0


def test_a_file_is_read_again_only_if_its_size_or_time_has_changed(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(source)
    os.utime(sound(source, "two"))
    read: list[str] = []
    checksum = named_files.xxhash.xxh3_128
    monkeypatch.setattr(named_files.xxhash, "xxh3_128", lambda: read.append("") or checksum())
    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_leniently", lambda *a: pytest.fail("the files were known"))
        assert build(source) == first
        assert len(read) == 1
        assert build(source) == first
        assert len(read) == 1
    [kept] = first.parent.glob("files-*.json")
    kept.write_text(kept.read_text().replace("1", "2"))  # what was remembered is damaged
    assert build(source) == first
    assert len(read) == 3


def test_the_same_data_elsewhere_are_looked_at_there(source: Source, tmp_path: Path) -> None:
    first = build(source)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    copy = Source(str(tmp_path / "copy" / "a.jsonl"), bad_budget=0.9)
    encoder = Letters()
    assert build(copy, encoder) == first
    assert encoder.encoded == 0
    sound(copy, "one").write_text("changed")
    assert letters(build(copy)) == ["changed", "twotwotwo", "changed"]
    assert build(source) == first


def test_a_file_that_comes_later_is_a_change(source: Source) -> None:
    sound(source, "two").unlink()
    first = build(source)
    assert letters(first) == ["oneoneone"] * 2
    sound(source, "two").write_text("late")
    assert letters(build(source)) == ["oneoneone", "late", "oneoneone"]
    sound(source, "two").unlink()
    assert build(source) == first


def test_a_file_that_changes_while_it_is_encoded_is_told(source: Source) -> None:
    encoder = Letters(lambda: sound(source, "two").write_text("other") and None)
    with pytest.raises(UserError, match="changed while being read; run the same command again"):
        build(source, encoder)
    assert letters(build(source)) == ["oneoneone", "other", "oneoneone"]


def test_who_gives_up_is_not_kept(source: Source) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        named_files.digest(source, Letters(), "", Path(source.name).parent, stop)


def test_files_that_a_recording_lies_in(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("")
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(tmp_path / "a.wav", "a.wav")
    where = f"{tmp_path / 'data.jsonl'}:3"
    (tmp_path / "data.jsonl").write_text("")

    def found(value: object, **fields: str) -> list[Path]:
        return files_of(Record(where, {"sound": value}), {"audio": "sound", **fields})

    assert found("a.wav") == [tmp_path / "a.wav"]
    assert found("nowhere.wav") == [tmp_path / "nowhere.wav"]
    assert found("b.tar#a.wav") == [tmp_path / "b.tar"]
    assert found({"path": "a.wav", "bytes": None}) == [tmp_path / "a.wav"]
    assert found("a.wav", audio="other") == []
    for value in ({"path": "a.wav", "bytes": b"x"}, {"array": [0.0], "sampling_rate": 16000}, "", None, 3, "a\0b"):
        assert found(value) == []
