"""Audio loading: find, decode, mix to mono, and resample for the model."""

from __future__ import annotations

import posixpath
import re
import tarfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from distft.data.formats import value_of
from distft.data.records import Record
from distft.errors import UserError

Floats = npt.NDArray[np.float32]
Int16s = npt.NDArray[np.int16]
# What an archive has by a name: where a file begins and its bytes' number, its bytes, or the name that a link leads to.
Member = tuple[int, int] | bytes | str

LARGEST_ARCHIVE = 4 << 30  # bytes that a compressed archive may hold: it is unpacked in memory
_MOST_LINKS = 40  # that are followed one after the other, as Linux does
_FULL_SCALE = 32768.0  # int16 that stands for 1.0, so that a recording of 16 bits comes back as it was
_LOUDEST = 2.0  # lossy codecs overshoot 1.0 a little; beyond this a recording has another scale
_MEMBER = re.compile(r"(.+\.(?:tar|tgz|tbz2|txz|tar\.\w+))#(.+)")
_PLACES = (re.compile(r"(.+):\d+"), re.compile(r"(.+)\[\d+\]"))  # of a record in its file


class Unheard(Exception):
    """Why there is nothing to hear, in a sentence that lacks only the record it is about."""


def samples_of(record: Record, fields: Mapping[str, str], rate: int) -> Int16s:
    """The recording in the column `audio` of a record, int16 [n], n > 0: half the size of floats.

    The column holds a path, which starts from the folder of the data file; a member of an archive
    (`speech.tar.gz#one.wav`); or what `datasets` has there: {"bytes", "path"} or {"array", "sampling_rate"}.

    Raises:
        UserError: there is no recording, it does not decode, is empty, or is out of scale.
    """
    value = value_of(record, "audio", fields)
    try:
        return to_int16(_load(value, base_of(record), rate))
    except Unheard as error:
        raise UserError(f"{record.where}: {error}") from None


def files_of(record: Record, fields: Mapping[str, str]) -> list[Path]:
    """The file that the column `audio` of a record names, of a member its archive; none where it holds the sound."""
    value = record.fields.get(fields.get("audio", "audio"))
    if isinstance(value, dict):
        value = None if value.get("array") is not None or value.get("bytes") is not None else value.get("path")
    if not isinstance(value, str) or not value:
        return []
    try:
        place = _place(value, base_of(record))
    except Unheard:
        return []
    return [place if isinstance(place, Path) else place[0]]


def to_int16(audio: Floats) -> Int16s:
    scaled: Floats = np.rint(audio * np.float32(_FULL_SCALE))
    return scaled.clip(-_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def to_float(samples: Int16s) -> Floats:
    """float32 [n] in [-1, 1)."""
    return np.asarray(samples, np.float32) / np.float32(_FULL_SCALE)


def milliseconds(count: int, rate: int) -> int:
    """How long `count` samples last, rounded up."""
    return -(-count * 1000 // rate)


def base_of(record: Record) -> Path:
    """The folder that relative paths in a record start from: that of its data file; of `datasets`, its own."""
    found = next((match for place in _PLACES if (match := place.fullmatch(record.where))), None)
    source = Path(found[1] if found else record.where)
    if source.is_dir():
        return source
    return source.parent if source.exists() else Path()  # nothing of a hub data set is here


def _load(value: Any, base: Path, rate: int) -> Floats:
    if isinstance(value, dict):
        if value.get("array") is not None:
            return _fit("audio", _numbers(value["array"]), value.get("sampling_rate"), rate)
        if (data := value.get("bytes")) is not None:
            if not isinstance(data, bytes):
                raise Unheard(f"audio.bytes must be bytes, not {type(data).__name__}; in JSON, give a path")
            return load(data, rate)
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise Unheard(f"audio must be a path, or an audio value of the datasets library, not {type(value).__name__}")
    return load(_place(value, base), rate)


def _place(value: str, base: Path) -> Path | tuple[Path, str]:
    """The file, or the archive and the name of a member in it, that a path in a record means. Raises Unheard."""
    whole = Path(value)
    try:
        whole = base / whole.expanduser()
        whole.stat()
    except OSError:  # not there, or too long to be: a member's name may be longer than any file's
        if member := _MEMBER.fullmatch(str(whole)):
            return Path(member[1]), member[2]
    except (RuntimeError, ValueError) as error:  # nobody's home, or characters that are in no path
        raise Unheard(f"audio {value!r} is not a path ({error}); give a file, or a member of an archive") from None
    return whole


def load(source: Path | tuple[Path, str] | bytes, rate: int) -> Floats:
    """A recording as float32 [n] at `rate` samples a second: wav, flac, ogg, mp3 and whatever else libsndfile knows.

    Args:
        source: a file, an archive and the name of a member in it, or the bytes of a file.

    Raises:
        Unheard: it cannot be had.
    """
    import soundfile  # type: ignore[import-untyped]

    match source:
        case bytes():
            name, data = "audio", source
        case Path():
            name, data = f"audio {source}", _bytes(source)
        case archive, member:
            name, data = f"audio {archive}#{member}", _member(archive, member)
    try:
        audio, found = soundfile.read(BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise Unheard(f"{name} cannot be decoded ({error.error_string.strip()}); convert it to wav or flac") from None
    return _fit(name, audio.mean(axis=1), found, rate)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Unheard(f"audio {path} does not exist; paths start from the folder of the data file") from None
    except OSError as error:
        raise Unheard(f"audio {path} cannot be read ({error.strerror})") from None


def _numbers(array: Any) -> Floats:
    try:
        audio = np.asarray(array, np.float32)
    except (TypeError, ValueError):
        audio = np.zeros((0, 0), np.float32)
    if audio.ndim != 1:
        raise Unheard("audio.array must be a flat list of numbers, the samples of one channel")
    return audio


def _fit(name: str, audio: Floats, found: Any, rate: int) -> Floats:
    """Checks a recording of one channel and resamples it from the rate `found`."""
    if not isinstance(found, int) or found <= 0:
        raise Unheard(f"{name} has the sampling rate {found!r}; it must be a whole number above 0")
    if len(audio) == 0:
        raise Unheard(f"{name} is empty; leave the record out")
    if not np.isfinite(audio).all():
        raise Unheard(f"{name} contains samples that are not finite; repair it, or leave the record out")
    if (loudest := float(np.abs(audio).max())) > _LOUDEST:
        raise Unheard(f"{name} has samples up to {loudest:g}; bring them between -1 and 1 (16 bits: divide by 32768)")
    if found == rate:
        return audio
    import soxr  # type: ignore[import-untyped]

    resampled: Floats = soxr.resample(audio, found, rate)
    return resampled if len(resampled) else np.zeros(1, np.float32)  # shorter than a sample at the new rate


def _member(archive: Path, name: str) -> bytes:
    found = _followed(name, _members(archive))
    if found is None:
        raise Unheard(f"audio {archive}#{name} does not exist: the archive has no such member")
    if isinstance(found, bytes):
        return found
    with archive.open("rb") as file:
        file.seek(found[0])
        return file.read(found[1])


def _followed(name: str, members: Mapping[str, Member]) -> tuple[int, int] | bytes | None:
    """The file that a name leads to, also by links to files and folders; None: there is none."""
    path = PurePosixPath(posixpath.normpath(name))
    for _ in range(_MOST_LINKS):
        held = next((part for part in (path, *path.parents) if str(part) in members), path)
        found = members.get(str(held))
        if not isinstance(found, str):
            return found if held == path else None
        path = PurePosixPath(posixpath.normpath(PurePosixPath(found, path.relative_to(held))))
    return None


@lru_cache(maxsize=4)
def _members(archive: Path) -> dict[str, Member]:
    """What is in an archive by name, in its shortest spelling; of a compressed one, the bytes of files.

    Nothing in a compressed archive can be reached but by unpacking all that is before it.
    """
    members: dict[str, Member] = {}
    total = 0
    try:
        plain = _is_plain(archive)
        with tarfile.open(archive) as tar:
            for info in tar:
                name = posixpath.normpath(info.name)
                if info.issym():
                    members[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), info.linkname))
                elif info.islnk() and (held := members.get(posixpath.normpath(info.linkname))) is not None:
                    members[name] = held  # it stands behind what it is a link to
                if not info.isreg():
                    continue
                total += info.size
                if not plain and total > LARGEST_ARCHIVE:
                    raise Unheard(
                        f"archive {archive} holds more than {LARGEST_ARCHIVE >> 30} GiB and is compressed; unpack it"
                    )
                file = None if plain else tar.extractfile(info)
                members[name] = file.read() if file else (info.offset_data, info.size)
    except FileNotFoundError:
        raise Unheard(f"archive {archive} does not exist; paths start from the folder of the data file") from None
    except (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError) as error:
        raise Unheard(f"archive {archive} cannot be read ({error}); download or pack it again") from None
    return members


def _is_plain(archive: Path) -> bool:
    try:
        with tarfile.open(archive, "r:"):
            return True
    except tarfile.ReadError:
        return False
