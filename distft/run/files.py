"""Atomic writes: a file or folder is complete or absent, never half written."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. It takes the place of `path` when the block ends without an exception; if the
    block raises, what was there before stays as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, text: str) -> None:
    """The old content or the new one, whatever happens in between."""
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def complete_folder(path: Path, content: str | None = None) -> Iterator[Path]:
    """A folder beside `path` to fill. It takes the place of `path`, which may be absent or a folder, when the block
    ends without an exception. The next call for the same `path` removes what a killed process left, and what one that
    was given up still writes, which then fails.

    Args:
        content: a short name of what is written. What a process left that wrote the same is there again, to be
            continued. Default: the folder is empty.
    """
    staged = path.with_name(f".{path.name}.staged-{content or secrets.token_hex(4)}")
    for left in path.parent.glob(f".{glob.escape(path.name)}.staged-*"):
        if left != staged:
            shutil.rmtree(left, ignore_errors=True)
    staged.mkdir(parents=True, exist_ok=content is not None)
    yield staged
    staged.stat()  # raises if another writer has removed it; what is in its place then is newer
    if path.exists():
        shutil.rmtree(path)
    os.replace(staged, path)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines_backwards(path: Path, block: int = 1 << 16) -> Iterator[bytes]:
    """Lines of a file, the last one first; no more of it is read than is asked for. What follows the last newline is a
    line too, mostly an empty one."""
    with open(path, "rb") as file:
        position, rest = file.seek(0, os.SEEK_END), b""
        while position > 0:
            size = min(block, position)
            position = file.seek(position - size)
            rest, *whole = (file.read(size) + rest).split(b"\n")
            yield from reversed(whole)
        yield rest
