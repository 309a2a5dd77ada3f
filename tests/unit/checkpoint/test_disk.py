"""Files past the page cache: what is written is there, whatever its size, and has the checksum that was told."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from distft.checkpoint import disk
from distft.checkpoint.disk import NewFile, checksum, checksum_of_disk, forget

CHUNK = 8 << 20


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system that may know O_DIRECT, and one of which older kernels do not."""
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm")
    folder = Path("/dev/shm") / f"distft-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("pieces", [[0], [5], [4096], [CHUNK], [CHUNK - 1, 2], [8, 2 * CHUNK + 4096 + 3, CHUNK]])
def test_what_was_written_is_there(folder: Path, pieces: list[int]) -> None:
    content = [os.urandom(size) for size in pieces]
    path = folder / "-".join(map(str, pieces))
    with NewFile(path) as file:
        for piece in content:
            file.write(memoryview(piece))
        digest = file.finish()
    assert path.read_bytes() == b"".join(content)
    assert (digest.name, digest.bytes) == (path.name, sum(pieces))
    assert digest.xxh3 == xxhash.xxh3_128(b"".join(content)).hexdigest()
    assert checksum(path) == checksum_of_disk(path, keep=False) == checksum_of_disk(path, keep=True) == digest.xxh3


def cached(path: Path) -> float:
    """The share of a file's pages that the page cache holds."""
    pages = -(-path.stat().st_size // mmap.PAGESIZE)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapped:
        held = (ctypes.c_ubyte * pages)()
        view = np.frombuffer(mapped, np.uint8)
        code = ctypes.CDLL(None).mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(view)), held)
        del view
    assert code == 0
    return sum(byte & 1 for byte in held) / pages


def test_what_was_read_back_stays_in_the_page_cache_only_where_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with NewFile(path) as file:
        file.write(os.urandom(3 * CHUNK))
        file.finish()
    checksum_of_disk(path, keep=False)
    if cached(path) == 1:
        pytest.skip("the file system of temporary files knows no O_DIRECT")
    assert cached(path) < 0.05
    checksum_of_disk(path, keep=True)
    assert cached(path) == 1
    forget(path)
    assert cached(path) < 0.05
    forget(tmp_path / "y")


def test_blocks_that_the_file_system_does_not_take_go_through_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def with_larger_blocks(descriptor: int, data: memoryview) -> int:
        if disk.fcntl.fcntl(descriptor, disk.fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", with_larger_blocks)
    with NewFile(tmp_path / "x") as file:
        file.write(b"a" * (CHUNK + 1))
        digest = file.finish()
    assert digest.xxh3 == checksum(tmp_path / "x")
    assert (tmp_path / "x").stat().st_size == CHUNK + 1


def test_a_file_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        NewFile(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"mine"
