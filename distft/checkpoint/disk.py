"""Direct disk I/O for checkpoint files: write and read past the page cache, with checksums.

A checkpoint is read once, if at all. In the page cache it would push out what is of use, count as memory of the job,
and take more CPU time than training may have to spare. So only the newest one is there, for a restart, where it takes
little of the job's memory. Where a file system knows no O_DIRECT, the page cache it is.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash

from distft.process import pulse

_CHUNK_BYTES = 8 << 20  # a multiple of every block size


@dataclass(frozen=True)
class Digest:
    """What a file must be; `xxh3` is its XXH3 of 128 bits, in hex (https://xxhash.com)."""

    name: str
    bytes: int
    xxh3: str


class NewFile:
    """Is written once, from its beginning to its end, and has a digest then. Raises FileExistsError."""

    def __init__(self, path: Path) -> None:
        self._path, self._hash, self._bytes, self._filled = path, xxhash.xxh3_128(), 0, 0
        self._buffer = np.frombuffer(mmap.mmap(-1, _CHUNK_BYTES), np.uint8)  # begins at a page, as O_DIRECT wants it
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        past_page_cache(self._descriptor)

    def __enter__(self) -> NewFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)

    def write(self, data: bytes | memoryview) -> None:
        """`data`: bytes, or a contiguous view of them."""
        rest = np.frombuffer(data, np.uint8)
        while len(rest):
            taken = rest[: _CHUNK_BYTES - self._filled]
            # not by Python, which would hold its lock meanwhile and have the training wait at every operation
            np.copyto(self._buffer[self._filled : self._filled + len(taken)], taken)
            self._filled += len(taken)
            rest = rest[len(taken) :]
            if self._filled == _CHUNK_BYTES:
                self._flush()

    def finish(self) -> Digest:
        """Have all of it on disk."""
        through_page_cache(self._descriptor)  # what is left over fills no block
        self._flush()
        os.fsync(self._descriptor)
        return Digest(self._path.name, self._bytes, self._hash.hexdigest())

    def _flush(self) -> None:
        pulse.moving()
        rest = self._buffer[: self._filled].data
        self._hash.update(rest)
        self._bytes += len(rest)
        self._filled = 0
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not through_page_cache(self._descriptor):
                    raise


def checksum(path: Path) -> str:
    """XXH3 of a file's bytes, in hex, by the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return _checksum(descriptor)
    finally:
        os.close(descriptor)


def checksum_of_disk(path: Path, keep: bool) -> str:
    """XXH3 of the bytes on the disk, and not of what the page cache holds. `keep`: it holds them afterwards."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if not keep:
            past_page_cache(descriptor)
        return _checksum(descriptor)
    finally:
        os.close(descriptor)


def forget(path: Path) -> None:
    """Have the page cache drop a file, if it is still there."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _checksum(descriptor: int) -> str:
    buffer, result = memoryview(mmap.mmap(-1, _CHUNK_BYTES)), xxhash.xxh3_128()
    while count := os.readv(descriptor, [buffer]):
        pulse.moving()
        result.update(buffer[:count])
        if count < _CHUNK_BYTES:  # the end, most likely; and O_DIRECT reads from where a block begins only
            through_page_cache(descriptor)
    return result.hexdigest()


def past_page_cache(descriptor: int) -> None:
    """As far as the file system can."""
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)


def through_page_cache(descriptor: int) -> bool:
    """Whether that is a change."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    return bool(flags & os.O_DIRECT)
