"""Checksums of a cache folder: one for each stretch of each file; what is damaged is found before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from distft.errors import UserError
from distft.process import pulse
from distft.run.files import write_atomically

STRETCH = 4 << 20  # bytes that share a checksum: XXH3 of 64 bits (https://xxhash.com)
FILE = "checksums.json"  # has those of all other files, and is sealed itself


class Damaged(UserError):
    """A folder is not what was written. It is marked, so that the next start looks at all of it."""

    def __init__(self, folder: Path, what: str) -> None:
        with suppress(OSError):  # somebody else's folder
            mark_of(folder).touch()
        super().__init__(
            f"token cache {folder} is damaged ({what}); run the same command again, which makes that part anew"
        )


def mark_of(folder: Path) -> Path:
    """The file beside a cache folder that says that somebody found it damaged."""
    return folder.with_name(f"{folder.name}.damaged")


@dataclass(frozen=True)
class Spot:
    """A stretch of a file."""

    file: str
    stretch: int

    def __str__(self) -> str:
        return f"{self.file} from byte {self.stretch * STRETCH:,} on"


@dataclass(frozen=True)
class Sums:
    """Of a file: how many bytes it has, and the checksums of its stretches; the last one may be shorter."""

    bytes: int
    each: Sequence[int]

    def stretch_bytes(self, stretch: int) -> int:
        return min(STRETCH, self.bytes - stretch * STRETCH)


class SummedFile:
    """A file that is only added to, with its checksums. Goes on behind what `sums` is about.

    Raises:
        ValueError: the stretch to go on with is not what was written.
    """

    def __init__(self, path: Path, sums: Sums) -> None:
        whole, rest = divmod(sums.bytes, STRETCH)
        self._each, self._hash, self._room = list(sums.each[:whole]), xxhash.xxh3_64(), STRETCH - rest
        self._file = path.open("r+b")
        there = os.fstat(self._file.fileno()).st_size
        self._file.truncate(sums.bytes)
        self._file.seek(whole * STRETCH)
        self._hash.update(self._file.read(rest))
        if there < sums.bytes or self.sums != sums:
            self._file.close()
            raise ValueError(f"{path} is not what was written")

    @property
    def sums(self) -> Sums:
        tail = STRETCH - self._room
        return Sums(len(self._each) * STRETCH + tail, [*self._each, *([self._hash.intdigest()] if tail else [])])

    def write(self, data: bytes) -> None:
        self._file.write(data)
        rest = memoryview(data)
        while len(rest) >= self._room:
            self._hash.update(rest[: self._room])
            self._each.append(self._hash.intdigest())
            rest, self._room = rest[self._room :], STRETCH
            self._hash.reset()
        self._hash.update(rest)
        self._room -= len(rest)

    def sync(self) -> None:
        self._file.flush()
        # Without it a machine that dies after a rename may leave a whole folder of empty files.
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Checksums:
    """Those of all files of a folder. Raises ValueError, or OSError, if they are not there as they were written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        known = json.loads(unsealed((folder / FILE).read_text(encoding="utf-8")))
        self.files = {name: Sums(*one) for name, one in known.items()}

    def spots(self, name: str) -> Iterator[Spot]:
        """What of a file is not as it was written; of one whose size is another, all of it. Raises OSError."""
        sums = self.files[name]
        with (self._folder / name).open("rb") as file:
            wrong = os.fstat(file.fileno()).st_size != sums.bytes
            for stretch, checksum in enumerate(sums.each):
                pulse.moving()
                content = file.read(STRETCH)
                if wrong or xxhash.xxh3_64_intdigest(content) != checksum:
                    yield Spot(name, stretch)
            if wrong and not sums.each:
                yield Spot(name, 0)

    def check(self, name: str) -> None:
        """Raises ValueError, or OSError, if a file is not what was written."""
        if (spot := next(self.spots(name), None)) is not None:
            raise ValueError(f"{spot} it is not what was written")


class Watch:
    """A mapped file, whose stretches are verified when they are first read."""

    def __init__(self, folder: Path, name: str, content: npt.NDArray[Any], sums: Sums) -> None:
        self._folder, self._name, self._sums = folder, name, sums
        self._bytes = np.asarray(content).view(np.uint8)
        self._verified = bytearray(len(sums.each))

    def check(self, begin: int, end: int) -> None:
        """Raises Damaged if one of these bytes is in a stretch that is not what was written."""
        for stretch in range(begin // STRETCH, -(-end // STRETCH)):
            if not self._verified[stretch]:
                first = stretch * STRETCH
                content = self._bytes[first : first + self._sums.stretch_bytes(stretch)]
                if xxhash.xxh3_64_intdigest(content.data) != self._sums.each[stretch]:
                    raise Damaged(self._folder, f"{Spot(self._name, stretch)} it is not what was written")
                self._verified[stretch] = 1


def write(folder: Path, sums: Mapping[str, Sums]) -> None:
    """Have the checksums of a folder's files on the disk. Raises OSError."""
    write_atomically(folder / FILE, sealed(json.dumps({name: [one.bytes, one.each] for name, one in sums.items()})))


def sums_of(content: bytes) -> Sums:
    """Of a small file."""
    begins = range(0, len(content), STRETCH)
    return Sums(len(content), [xxhash.xxh3_64_intdigest(content[begin : begin + STRETCH]) for begin in begins])


def sealed(text: str) -> str:
    """A text behind a line with its checksum."""
    return f"{xxhash.xxh3_64_hexdigest(text.encode())}\n{text}"


def unsealed(content: str) -> str:
    """The text of a sealed one. Raises ValueError if it is not what was sealed."""
    checksum, _, text = content.partition("\n")
    if xxhash.xxh3_64_hexdigest(text.encode()) != checksum:
        raise ValueError("it is not what was written")
    return text
