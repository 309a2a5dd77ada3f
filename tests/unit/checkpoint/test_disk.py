"""Files past the page cache: what is written is there, whatever its size, and has the checksum that was told."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash

from distft.checkpoint import disk
from distft.checkpoint.disk import NewFile, checksum

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
    assert checksum(path) == checksum(path, of_disk=True) == digest.xxh3


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
