"""Encoding by several processes: the same bytes, whatever their number and whatever kills them."""

import errno
import gzip
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from distft.data import encoding, parts, sources
from distft.data.bad_records import Bad, BadRecords
from distft.data.cache_writer import CacheWriter
from distft.data.corpus import Corpus
from distft.data.records import Document, Encoded, each
from distft.data.sources import Source, read_leniently, read_piece
from distft.data.text_lines import WHOLE, Stretch, stretches
from distft.data.token_cache import build_cache, left_out, root_of
from distft.errors import RunFailed, UserError


class Stop(Exception):
    pass


class Words:
    """Documents of letters, notes and warnings. Writes down where each record is that it encodes."""

    digest, columns = "words", {"letters": "uint8", "place": "float32"}

    def __init__(self, log: Path | None = None, seconds: float = 0.0, slow: str = "") -> None:
        self._log, self._seconds, self._slow = log, seconds, slow

    def encode(self, record, answered=True):
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{record.where}\n")
        if self._seconds and record.where.endswith(self._slow):
            time.sleep(self._seconds)
        text = record.fields["text"]
        if text == "bad":
            raise UserError(f"{record.where}: is bad")
        documents = [
            Document({"letters": [*word.encode()], "place": np.arange(i)}, len(word), i)
            for i, word in enumerate(text.split())
        ]
        return Encoded(documents, {"of words": len(documents)}, {f"{len(documents)} words": f"{record.where} has them"})


class Several(Words):
    """Encodes some at once, and writes down how many."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._sizes = sizes

    def encode_many(self, records):
        self._sizes.append(len(records))
        return each(records, self.encode)


def lines_of(number: int, bad: int = 0) -> list[str]:
    texts = ["bad" if bad and i % bad == bad - 1 else "one two three four"[: i % 19] for i in range(number)]
    return ["" if i % 13 == 5 else json.dumps({"text": text, "i": i}) for i, text in enumerate(texts)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(encoding, "PART_BYTES", 1000)
    monkeypatch.setattr(parts, "_POLL", 0.001)


@pytest.fixture
def build(tmp_path):
    def make(source, workers, encoder=None, cache="cache", check_stop=lambda: None, progress=lambda done: None, **more):
        cache = str(tmp_path / cache)
        return build_cache(source, encoder or Words(), cache, check_stop, progress, workers=workers, **more)

    return make


def written(folder: Path, lines: list[str], **how) -> Source:
    path = folder / "a.jsonl"
    path.write_text("\n".join(lines))  # the last one has no end
    return Source(str(path), **how)


def of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(build, monkeypatch, source: Source) -> dict[str, bytes]:
    """What one process writes into one folder."""
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "PART_BYTES", 1 << 30)
        return of_files(build(source, 1, cache="in one"))


@pytest.mark.parametrize("bad", [0, 7])
def test_the_same_bytes_whatever_the_number_of_processes(tmp_path, build, monkeypatch, bad):
    source = written(tmp_path, lines_of(400, bad), bad_budget=0.5 if bad else None)
    assert len(sources.pieces(source, 1000)) > 10
    whole = expected(build, monkeypatch, source)
    told, shown = [], []
    for workers in (1, 2, 4):
        folder = build(source, workers, cache=f"by {workers}", progress=shown.append, expect=told.append)
        assert of_files(folder) == whole
        assert [path for path in folder.parent.iterdir() if path.is_dir()] == [folder]
        assert len(left_out(folder, source)) == (53 if bad else 0)
    assert shown[-1] == Corpus.open(folder).meta.records == 369
    assert told == [400] * 3


def test_a_source_that_is_not_cut_stays_in_this_process(tmp_path, build, monkeypatch):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines_of(400)).encode()))
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    assert Corpus.open(build(Source(str(path)), 4)).meta.records == 369
    monkeypatch.setattr(encoding, "PART_BYTES", 1 << 20)
    assert Corpus.open(build(written(tmp_path, lines_of(400)), 4)).meta.records == 369


def test_the_first_bad_record_is_named_also_where_a_later_one_is_met_sooner(tmp_path, build):
    lines = lines_of(400)
    lines[6] = lines[398] = "{broken"
    lines[390] = '{"text": "bad"}'
    source = written(tmp_path, lines)
    with pytest.raises(UserError, match=r"a\.jsonl:7 is not valid JSON"):
        build(source, 4, Words(seconds=0.3, slow=":2"))
    lines[6] = ""
    source = written(tmp_path, lines)
    with pytest.raises(UserError, match=r"a\.jsonl:391: is bad"):
        build(source, 2)
    assert [path for path in root_of(str(tmp_path / "cache")).iterdir() if path.is_dir()] == []


def test_too_many_bad_records_are_counted_over_all_parts(tmp_path, build):
    source = written(tmp_path, lines_of(400, bad=7), bad_budget=0.1)
    with pytest.raises(BadRecords, match=r"53 of the 369 records of .* are bad") as caught:
        build(source, 2)
    first, last = caught.value.bad[0], caught.value.bad[-1]
    assert (first.record, first.where) == (5, f"{source.spec}:7")
    assert (last.record, last.where) == (367, f"{source.spec}:399")
    assert isinstance(first, Bad)


@pytest.mark.parametrize("bad", [0, 7])
def test_records_are_encoded_many_at_a_time_and_none_changes_another(tmp_path, build, monkeypatch, bad):
    source, sizes = written(tmp_path, lines_of(400, bad), bad_budget=0.5 if bad else None), []
    monkeypatch.setattr(encoding, "PART_BYTES", 1 << 20)
    whole = of_files(build(source, 1))
    assert of_files(build(source, 1, Several(sizes), cache="several")) == whole
    assert sizes[:5] == [1, 2, 4, 8, 16]
    assert sum(sizes) == 369
    lines = lines_of(400)
    lines[101], lines[102], lines[103] = '{"text": "bad"}', "{", '{"text": "bad", "i": 2}'
    source = written(tmp_path, lines)
    with pytest.raises(UserError, match=r"a\.jsonl:102: is bad"):
        build(source, 1, Several(sizes))


def test_what_is_wrong_with_a_record_is_said_before_what_is_wrong_with_the_file_behind_it(tmp_path, build):
    path, lines = tmp_path / "a.jsonl.gz", lines_of(400)
    lines[390] = '{"text": "bad"}'
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-8])  # without its end
    with pytest.raises(UserError, match=r":391: is bad"):
        build(Source(str(path)), 1, Several([]))
    lines[390] = ""
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-8])
    with pytest.raises(UserError, match="is not a complete gzip file"):
        build(Source(str(path)), 1, Several([]))


def test_slow_records_are_encoded_few_at_a_time(tmp_path, build, monkeypatch):
    sizes: list[int] = []
    encoder = Several(sizes)
    monkeypatch.setattr(encoding, "_EVERY", 0.004)
    encoder._seconds = 0.001
    build(written(tmp_path, ['{"text": "a"}'] * 90), 1, encoder)
    assert max(sizes) <= 4


def lines_in(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def encode_and_kill(source: Source, cache: str, log: Path, records: int) -> None:
    """Encode in a tree of processes that is killed when so many more records are in the log."""
    wanted, pid = len(lines_in(log)) + records, os.fork()
    if pid == 0:
        os.setsid()
        build_cache(source, Words(log, 0.0005), cache, lambda: None, lambda done: None, workers=2)
        os._exit(0)
    while len(lines_in(log)) < wanted:
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_killed_again_and_again_it_is_the_same_to_the_byte(tmp_path, build, monkeypatch):
    monkeypatch.setattr(encoding, "_KEEP_EVERY", 0.01)
    monkeypatch.setattr(encoding, "_EVERY", 0.002)
    source = written(tmp_path, lines_of(1000, bad=11), bad_budget=0.5)
    whole = expected(build, monkeypatch, source)
    draw = random.Random(1)
    for _ in range(4):
        encode_and_kill(source, str(tmp_path / "cache"), tmp_path / "killed", draw.randint(80, 200))
    assert of_files(build(source, 2, Words(tmp_path / "log"))) == whole
    again = lines_in(tmp_path / "log")
    assert len(set(again)) == len(again) < 923  # of all


def test_stopped_it_goes_on_and_finished_parts_are_not_done_again(tmp_path, build, monkeypatch):
    source, logs = written(tmp_path, lines_of(400)), [tmp_path / "first", tmp_path / "second"]
    whole = expected(build, monkeypatch, source)

    def stop():
        if len(lines_in(logs[0])) > 100:
            raise Stop

    monkeypatch.setattr(encoding, "_EVERY", -1.0)
    with pytest.raises(Stop):
        build(source, 2, Words(logs[0], seconds=0.001), check_stop=stop)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # no child is left
    assert of_files(build(source, 2, Words(logs[1]))) == whole
    first, second = map(lines_in, logs)
    assert len(first) > 100
    assert sorted(first + second) == sorted(row.where for row in read_leniently(source))


def test_a_child_that_is_killed_is_told_and_costs_nothing_that_was_done(tmp_path, build, monkeypatch):
    source = written(tmp_path, lines_of(400))
    whole = expected(build, monkeypatch, source)
    add = CacheWriter.add

    def killed(self, encoded):
        if self.folder.name == "part-5":
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, encoded)

    pieces = sources.pieces(source, 1000)
    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "add", killed)
        with pytest.raises(RunFailed, match="a child process was killed by SIGKILL"):
            build(source, 1)
    log = tmp_path / "log"
    assert of_files(build(source, 1, Words(log))) == whole
    assert lines_in(log)[0] == next(read_piece(pieces[5])).where


def test_a_full_disk_in_a_child_is_one_sentence_and_leaves_nothing(tmp_path, build, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = written(tmp_path, lines_of(400))
    monkeypatch.setattr(CacheWriter, "add", full)
    with pytest.raises(UserError, match=r"No space left on device.*data\.cache"):
        build(source, 2)
    assert [path for path in root_of(str(tmp_path / "cache")).iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("name", "how", "start", "ends"),
    [
        ("a.jsonl", {}, b"", b"\n"),
        ("a.jsonl", {}, b"\xef\xbb\xbf", b"\r\n"),
        ("a.txt", {"encoding": "latin-1"}, b"", b"\n"),
        ("a.csv", {"format": "lines"}, b"", b"\n"),
    ],
)
@pytest.mark.parametrize("size", [1, 50, 333, 10**6])
def test_stretches_hold_the_records_of_the_whole(tmp_path, name, how, start, ends, size):
    lines = [b'{"text": "%b\xe4"}' % (b"x" * (7 * i % 40)) for i in range(50)]
    lines = [line if how.get("encoding") else line.decode("latin-1").encode() for line in lines]
    lines[7], lines[20], lines[33] = b"", b"\xff{", b" "
    (tmp_path / name).write_bytes(start + ends.join(lines))
    source = Source(str(tmp_path / name), **how)
    pieces = sources.pieces(source, size)
    assert all(len(piece) == 1 and piece[0][0] == source for piece in pieces)
    parts = [piece[0][1] for piece in pieces]
    assert [row for part in parts for row in read_leniently(source, part)] == list(read_leniently(source))
    assert [part.begin for part in parts[1:]] == [part.end for part in parts[:-1]]
    assert [part.first for part in parts[1:]] == [part.last + 1 for part in parts[:-1]]
    assert (parts[0].begin, parts[-1].end, parts[-1].last) == (0, (tmp_path / name).stat().st_size, 50)
    assert len(parts) in {1: (49, 50), 10**6: (1,)}.get(size, range(4, 49))


def test_what_cannot_be_cut_is_one_stretch(tmp_path):
    for name, content in [
        ("a.csv", b"a,b\n1,2\n"),
        ("a.jsonl.gz", gzip.compress(b"{}\n{}\n", mtime=0)),
        ("a.json", b"[{},\n{}]"),
        ("b.jsonl", "{}\n{}\n".encode("utf-16")),
        ("c.jsonl", b""),
    ]:
        (tmp_path / name).write_bytes(content)
        source = Source(str(tmp_path / name))
        assert sources.pieces(source, 1) == [[(source, WHOLE)]]
    (tmp_path / "x").write_text("a\nb")
    source = Source({"a": str(tmp_path / "x"), "b": str(tmp_path / "x")})
    assert sources.pieces(source, 1) == [[(source, WHOLE)]]
    assert stretches(tmp_path / "x", None, 1) == [Stretch(0, 2, 1, 1), Stretch(2, 3, 2, 1)]
