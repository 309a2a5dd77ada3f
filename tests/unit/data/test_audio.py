"""Recordings come out the same wherever they lie, and what is wrong with one is said in a sentence."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]

from distft.data import audio
from distft.data.audio import Unheard, base_of, load, milliseconds, samples_of, to_float, to_int16
from distft.data.records import Record
from distft.errors import UserError

RATE = 16000


def tone(hertz: float = 440.0, seconds: float = 0.2, rate: int = RATE) -> audio.Floats:
    return np.asarray(0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate), np.float32)


def file_of(samples: Any, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    stream = BytesIO()
    soundfile.write(stream, samples, rate, format=format, subtype=subtype)
    return stream.getvalue()


def record(value: Any, where: str = "nowhere.jsonl:1") -> Record:
    return Record(where, {"audio": value})


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("format", "most"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.05)], ids=lambda value: str(value)
)
def test_formats(tmp_path: Path, format: str, most: float) -> None:
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(file_of(tone(), format=format))
    found = load(path, RATE)
    assert found.dtype == np.float32
    assert found.ndim == 1
    inner = slice(500, 2500)  # codecs ring at the ends
    assert np.abs(found[inner] - tone()[inner]).max() < most


def test_sixteen_bits_come_back_as_they_were() -> None:
    samples = np.array([-32768, -1, 0, 1, 12345, 32767], np.int16)
    found = samples_of(record({"bytes": file_of(samples)}), {}, RATE)
    assert found.dtype == np.int16
    assert found.tolist() == samples.tolist()
    assert to_int16(to_float(samples)).tolist() == samples.tolist()
    assert to_int16(np.array([1.5, -1.5], np.float32)).tolist() == [32767, -32768]


def test_channels_are_averaged() -> None:
    both = np.stack([tone(), -tone() / 2], axis=1)
    np.testing.assert_allclose(load(file_of(both, subtype="FLOAT"), RATE), tone() / 4, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_resampling_keeps_the_tone(rate: int) -> None:
    found = load(file_of(tone(rate=rate), rate), RATE)
    assert abs(len(found) - len(tone())) <= 1
    inner = slice(500, 2500)
    assert np.abs(found[inner] - tone()[inner]).max() < 0.01


def test_a_path_starts_from_the_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(file_of(tone()))
    (tmp_path / "d[1].jsonl").touch()
    assert len(samples_of(record("clips/a.wav", f"{tmp_path}/d[1].jsonl:7"), {}, RATE)) == 3200
    assert len(samples_of(record(str(tmp_path / "clips" / "a.wav")), {}, RATE)) == 3200
    assert base_of(record("", f"{tmp_path}/d[1].jsonl[7]")) == tmp_path
    assert base_of(record("", f"{tmp_path}[7]")) == tmp_path  # a folder of datasets
    monkeypatch.chdir(tmp_path)
    assert len(samples_of(record("clips/a.wav", "owner/name[3]"), {}, RATE)) == 3200  # the hub
    renamed = Record("owner/name[3]", {"speech": "clips/a.wav"})
    assert len(samples_of(renamed, {"audio": "speech"}, RATE)) == 3200


@pytest.mark.parametrize("name", ["speech.tar", "speech.tar.gz"])
def test_members_of_archives(tmp_path: Path, name: str) -> None:
    members = {"./one.wav": file_of(tone(440.0)), "deep/two.flac": file_of(tone(220.0), format="FLAC")}
    pack(tmp_path / name, members)
    (tmp_path / "d.jsonl").touch()
    where = f"{tmp_path}/d.jsonl:1"
    for member, hertz in (("deep/two.flac", 220.0), ("one.wav", 440.0), ("./one.wav", 440.0)):
        found = to_float(samples_of(record(f"{name}#{member}", where), {}, RATE))
        assert np.abs(found - tone(hertz)).max() < 1e-4
    with pytest.raises(
        UserError, match=r"d.jsonl:1: audio .*#three.wav does not exist: the archive has no such member"
    ):
        samples_of(record(f"{name}#three.wav", where), {}, RATE)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_links_and_other_spellings_in_archives(tmp_path: Path, name: str) -> None:
    links = [
        ("b/hard.wav", tarfile.LNKTYPE, "./a//one.wav"),
        ("b/soft.wav", tarfile.SYMTYPE, "../a/one.wav"),
        ("b/twice.wav", tarfile.SYMTYPE, "soft.wav"),
        ("c", tarfile.SYMTYPE, "./b/"),
        ("a/one.wav", tarfile.LNKTYPE, "a/one.wav"),  # as tar writes a file that it is given twice
        ("nowhere.wav", tarfile.SYMTYPE, "none.wav"),
        ("round.wav", tarfile.SYMTYPE, "about.wav"),
        ("about.wav", tarfile.SYMTYPE, "round.wav"),
    ]
    with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as tar:
        info = tarfile.TarInfo("a/.//one.wav")
        info.size = len(data := file_of(tone()))
        tar.addfile(info, BytesIO(data))
        for path, kind, target in links:
            link = tarfile.TarInfo(path)
            link.type, link.linkname = kind, target
            tar.addfile(link)
    for member in ("a/one.wav", "a//./one.wav", "b/hard.wav", "b/soft.wav", "b/twice.wav", "c/soft.wav"):
        assert len(samples_of(record(f"{tmp_path / name}#{member}"), {}, RATE)) == 3200
    for member in ("nowhere.wav", "round.wav", "a", "c", "a/one.wav/two.wav"):
        with pytest.raises(Unheard, match=f"{name}#{member} does not exist: the archive has no such member"):
            load((tmp_path / name, member), RATE)


def test_a_member_may_have_a_longer_name_than_files_have(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar", {f"{'n' * 300}.wav": file_of(tone())})
    assert len(samples_of(record(f"{archive}#{'n' * 300}.wav"), {}, RATE)) == 3200


def test_archives_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(pack(tmp_path / "whole.tar.gz", {"a.wav": file_of(tone())}).read_bytes()[:200])
    with pytest.raises(Unheard, match=r"broken.tar.gz cannot be read .*; download or pack it again"):
        load((broken, "a.wav"), RATE)
    with pytest.raises(Unheard, match=r"archive .*none.tar does not exist"):
        load((tmp_path / "none.tar", "a.wav"), RATE)
    monkeypatch.setattr(audio, "LARGEST_ARCHIVE", 100)
    with pytest.raises(Unheard, match="is compressed; unpack it"):
        load((tmp_path / "whole.tar.gz", "a.wav"), RATE)
    assert len(load((pack(tmp_path / "whole.tar", {"a.wav": file_of(tone())}), "a.wav"), RATE)) == 3200


def test_what_datasets_gives(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(file_of(tone()))
    whole = samples_of(record({"array": tone().tolist(), "sampling_rate": RATE, "path": None}), {}, RATE)
    assert whole.tolist() == to_int16(tone()).tolist()
    by_path = samples_of(record({"bytes": None, "path": str(tmp_path / "a.wav")}), {}, RATE)
    by_bytes = samples_of(record({"bytes": (tmp_path / "a.wav").read_bytes(), "path": "gone.wav"}), {}, RATE)
    assert by_path.tolist() == by_bytes.tolist()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "audio must be a path, or an audio value of the datasets library, not NoneType"),
        ({"bytes": None, "path": None}, "audio must be a path"),
        ("gone.wav", "audio gone.wav does not exist; paths start from the folder of the data file"),
        (".", "audio . cannot be read"),
        ("~nobody-by-this-name/a.wav", r"audio '~nobody-by-this-name/a.wav' is not a path \(.+\); give a file"),
        ("a\0.wav", r"audio 'a\\x00.wav' is not a path \(embedded null byte\); give a file"),
        ("a\0.tar#b.wav", r"audio 'a\\x00.tar#b.wav' is not a path \(embedded null byte\); give a file"),
        (f"{'n' * 300}.wav", r"audio n+.wav cannot be read \(File name too long\)"),
        (
            f"{'n' * 300}.tar#a.wav",
            r"archive n+.tar cannot be read \(.*File name too long.*\); download or pack it again",
        ),
        ({"bytes": "UklGRg=="}, "audio.bytes must be bytes, not str; in JSON, give a path"),
        ({"bytes": [82, 73, 70, 70]}, "audio.bytes must be bytes, not list; in JSON, give a path"),
        ({"bytes": [1, 2]}, "audio.bytes must be bytes, not list; in JSON, give a path"),
        ({"bytes": b"no sound at all"}, r"audio cannot be decoded \(.+\); convert it"),
        ({"bytes": file_of(np.zeros(0, np.float32))}, "audio is empty; leave the record out"),
        ({"bytes": file_of([0.0, float("nan")], subtype="FLOAT")}, "audio contains samples that are not finite"),
        ({"array": [0.0, float("inf")], "sampling_rate": RATE}, "audio contains samples that are not finite"),
        ({"array": [0, 12000], "sampling_rate": RATE}, "audio has samples up to 12000; bring them between -1 and 1"),
        ({"array": [[0.1], [0.2]], "sampling_rate": RATE}, "audio.array must be a flat list of numbers"),
        ({"array": ["a"], "sampling_rate": RATE}, "audio.array must be a flat list of numbers"),
        ({"array": [0.1], "sampling_rate": None}, "audio has the sampling rate None"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^nowhere.jsonl:1: {said}"):
        samples_of(record(value), {}, RATE)


def test_milliseconds_are_rounded_up() -> None:
    assert [milliseconds(count, RATE) for count in (1, 16, 17, 16000)] == [1, 1, 2, 1000]
