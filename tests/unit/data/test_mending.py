"""Damage in a cache folder: found before anything of it is used, and made anew."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distft.data import checksums, encoding, mending, parts
from distft.data.checksums import Damaged, SummedFile, Sums, mark_of, sums_of
from distft.data.corpus import Corpus
from distft.data.records import Document, Encoded, Record
from distft.data.sources import Source
from distft.data.token_cache import build_cache
from distft.errors import UserError

STRETCH = 64  # bytes, of these tests


class Letters:
    """Documents of letters: none, one or several a record. Counts what it encodes."""

    digest, columns = "letters", {"letters": "uint8", "places": "float32", "none": "int64"}

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        self.encoded.append(record.where)
        text = record.fields["text"]
        if text == "bad":
            raise UserError(f"{record.where}: is bad")
        words = (
            Document({"letters": [*w.encode()], "places": np.arange(i), "none": []}, len(w), i)
            for i, w in enumerate(text.split(), 1)
        )
        return Encoded(list(words), {"had words": 1} if text else {"were silent": 1})


def build(
    source: Source, cache: Path, encoder: Letters | None = None, said: list[str] | None = None, verify: bool = False
) -> Path:
    say: Callable[[str], None] = [].append if said is None else said.append
    return build_cache(
        source, encoder or Letters(), str(cache), lambda: None, lambda done: None, say=say, verify=verify
    )


def of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "STRETCH", STRETCH)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no machine dies here, and it takes long


@pytest.fixture
def source(tmp_path: Path) -> Source:
    texts = ["bad" if i % 11 == 3 else "one two three four five"[: i % 24] for i in range(100)]
    lines = ["" if i % 13 == 5 else json.dumps({"text": text}) for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return Source(str(tmp_path / "a.jsonl"), bad_budget=0.5)


def test_a_flipped_byte_of_any_file_is_found_and_made_anew(tmp_path: Path, source: Source) -> None:
    folder = build(source, tmp_path)
    whole, draw = of_files(folder), random.Random(0)
    files = sorted(name for name, content in whole.items() if content)
    assert {"meta.json", "checksums.json", "bad-records.jsonl", "contents.bin", "letters.offsets.bin"} < {*files}
    for trial in range(100):
        name = files[trial % len(files)]
        flip(folder / name, draw.randrange(len(whole[name])))
        encoder, said = Letters(), list[str]()
        assert build(source, tmp_path, encoder, said) == folder
        assert of_files(folder) == whole, name
        [sentence] = said
        assert sentence.startswith(f"token cache {folder} is damaged: {name} from byte ")
        assert 0 < len(encoder.encoded) < (100 if not name.endswith(".column.bin") else 40)
    encoder = Letters()
    build(source, tmp_path, encoder)
    assert encoder.encoded == []
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_documents_at_all_edges_of_a_stretch_are_made_anew(tmp_path: Path, source: Source) -> None:
    folder = build(source, tmp_path)
    whole = of_files(folder)
    for name in ("letters.column.bin", "places.column.bin"):
        for begin in range(0, len(whole[name]), STRETCH):
            content = whole[name][:begin] + bytes(b ^ 255 for b in whole[name][begin : begin + STRETCH])
            (folder / name).write_bytes(content + whole[name][begin + STRETCH :])
            build(source, tmp_path)
            assert of_files(folder) == whole


@pytest.mark.parametrize("cut", [1, 64, 200, 10**9, -8])
def test_a_file_of_another_size_is_made_anew(tmp_path: Path, source: Source, cut: int) -> None:
    folder = build(source, tmp_path)
    whole = of_files(folder)
    for name in whole:
        content = whole[name]
        (folder / name).write_bytes(content[: max(0, len(content) - cut)] if cut > 0 else content + bytes(-cut))
        if (folder / name).read_bytes() != content:
            assert mending.damage(folder, False)
        build(source, tmp_path)
        assert of_files(folder) == whole, name
        (folder / name).unlink()
        build(source, tmp_path)
        assert of_files(folder) == whole, name


def test_what_is_read_is_what_was_written_or_an_error(tmp_path: Path, source: Source) -> None:
    folder = build(source, tmp_path)
    path = folder / "letters.column.bin"
    whole, draw = path.read_bytes(), random.Random(1)
    sound = Corpus.open(folder)
    expected = [sound.document(i)["letters"].tobytes() for i in range(len(sound))]
    for _ in range(20):
        place = draw.randrange(len(whole))
        flip(path, place)
        corpus, refused = Corpus.open(folder), dict[int, str]()
        for i in draw.sample(range(len(corpus)), len(corpus)):
            try:
                assert corpus.document(i)["letters"].tobytes() == expected[i]
            except Damaged as error:
                refused[i] = str(error)
        ends = np.cumsum([len(one) for one in expected])
        assert int(np.searchsorted(ends, place, side="right")) in refused
        assert len(refused) < len(corpus)
        said = f"{path.name} from byte {place // STRETCH * STRETCH:,} on"
        assert all(said in text and "run the same command again" in text for text in refused.values())
        path.write_bytes(whole)


def test_a_large_folder_is_read_when_it_is_used_and_made_anew_after_that(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(source, tmp_path)
    whole = of_files(folder)
    monkeypatch.setattr(mending, "LARGE", 1000)
    flip(folder / "letters.column.bin", 100)
    said = list[str]()
    build(source, tmp_path, said=said)
    assert said == []
    corpus = Corpus.open(folder)
    with pytest.raises(Damaged):
        list(map(corpus.document, range(len(corpus))))
    assert mark_of(folder).exists()
    build(source, tmp_path, said=said)
    assert len(said) == 1
    assert of_files(folder) == whole
    assert not mark_of(folder).exists()
    flip(folder / "letters.column.bin", 100)
    build(source, tmp_path, said=said, verify=True)
    assert len(said) == 2
    assert of_files(folder) == whole
    flip(folder / "sizes.bin", 5)  # the index is read whatever the size
    build(source, tmp_path, said=said)
    assert len(said) == 3
    assert of_files(folder) == whole


def test_a_mark_of_one_who_saw_ghosts_is_forgotten(tmp_path: Path, source: Source) -> None:
    folder = build(source, tmp_path)
    mark_of(folder).touch()
    encoder, said = Letters(), list[str]()
    build(source, tmp_path, encoder, said)
    assert (encoder.encoded, said) == ([], [])
    assert not mark_of(folder).exists()


def test_a_sound_folder_of_somebody_else_is_used_and_a_damaged_one_refused(tmp_path: Path, source: Source) -> None:
    folder = build(source, tmp_path / "theirs")
    flip(folder / "letters.column.bin", 100)
    places = [folder, folder.parent, *folder.iterdir()]
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        with pytest.raises(UserError, match="cannot write the token cache"):
            build(source, tmp_path / "theirs")
    finally:
        for place in places:
            place.chmod(0o755)


def test_data_that_encode_to_something_else_now_make_the_whole_folder_anew(tmp_path: Path, source: Source) -> None:
    class Louder(Letters):
        def encode(self, record: Record, answered: bool = True) -> Encoded:
            return super().encode(Record(record.where, {"text": record.fields["text"].upper()}))

    folder = build(source, tmp_path)
    flip(folder / "letters.column.bin", 100)
    build(source, tmp_path, Louder())
    assert Corpus.open(folder).document(0)["letters"].tobytes().isupper()
    assert mending.damage(folder, True) == []


@pytest.mark.parametrize("parts", [False, True])
def test_checksums_are_those_of_the_files_however_often_it_was_killed(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, parts: bool
) -> None:
    whole = of_files(build(source, tmp_path / "at once"))
    monkeypatch.setattr(encoding, "PART_BYTES", 700 if parts else 1 << 20)
    monkeypatch.setattr(encoding, "_EVERY", -1.0)
    monkeypatch.setattr(encoding, "_KEEP_EVERY", -1.0)
    calls = limit = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls > limit:
            raise InterruptedError

    while True:
        calls, limit = 0, limit + 3
        try:
            folder = build_cache(source, Letters(), str(tmp_path / "killed"), stop, lambda done: None, workers=2)
            break
        except InterruptedError:
            continue
    assert limit > 3
    assert of_files(folder) == whole
    assert mending.damage(folder, True) == []


def test_a_part_that_is_damaged_before_it_is_appended_is_not_taken(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = of_files(build(source, tmp_path / "at once"))
    monkeypatch.setattr(encoding, "PART_BYTES", 700)
    append = parts._append

    def damaged(writer, place):  # type: ignore[no-untyped-def]
        if writer.parts == 2:
            flip(place / "letters.column.bin", 10)
        append(writer, place)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "_append", damaged)
        with pytest.raises(UserError, match="is not what was written a moment ago; run the same command again"):
            build(source, tmp_path / "other")
    assert of_files(build(source, tmp_path / "other")) == whole


def test_a_file_goes_on_with_its_checksums_or_says_that_it_is_another(tmp_path: Path) -> None:
    path, draw = tmp_path / "file", random.Random(0)
    path.touch()
    written, sums = b"", Sums(0, [])
    for _ in range(50):
        file = SummedFile(path, sums)
        for size in (draw.randrange(5), draw.randrange(150), draw.choice([0, STRETCH, 2 * STRETCH])):
            more = draw.randbytes(size)
            file.write(more)
            written += more
        file.sync()
        sums = file.sums
        file.write(b"what is written after that is forgotten")
        file.close()
        assert path.read_bytes()[: len(written)] == written
        assert sums == sums_of(written)
    path.write_bytes(written[:-1])
    with pytest.raises(ValueError, match="is not what was written"):
        SummedFile(path, sums)
    if tail := len(written) % STRETCH:
        path.write_bytes(written[:-tail] + bytes(tail))
        with pytest.raises(ValueError, match="is not what was written"):
            SummedFile(path, sums)
