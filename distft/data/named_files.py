"""Files that records name, such as recordings: which they are, and a digest of what is in them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import xxhash

from distft.data import sources
from distft.data.checksums import sealed, unsealed
from distft.data.records import NamesFiles, Record
from distft.data.sources import Source
from distft.process import pulse
from distft.run.digest import of_parts
from distft.run.files import write_atomically

THREADS = 16  # that ask a file system for files, which may be far away
_CHUNK = 1 << 20  # bytes


class Seen(NamedTuple):
    """A file as it was. One that is not there has the size -1."""

    path: str
    size: int
    time: int  # of its last change, in nanoseconds
    xxh3: str  # of its content, 128 bits in hex


def digest(
    source: Source, encoder: NamesFiles, records: str, memory: Path, check_stop: Callable[[], None]
) -> str | None:
    """sha256 (hex) of the content of the files that the records of a source name; None if they name none.

    A file is read where its size or time is not what it was, and the records if these files are not known yet.

    Args:
        records: digest of the records and of how the encoder sees them.
        memory: a folder that remembers files.
        check_stop: called every few files; raises to give up.
    """
    spec = source.spec if isinstance(source.spec, str) else next(iter(source.spec.values()))
    place = Path(spec).expanduser().absolute()  # relative paths start from there
    kept = memory / f"files-{of_parts(records, str(place))[:32]}.json"
    before = _read(kept)
    paths = _named(source, encoder, check_stop) if before is None else [one.path for one in before]
    known = {one.path: one for one in before or ()}
    pool = ThreadPoolExecutor(THREADS)
    try:
        now = []
        for seen in pool.map(partial(_look, known), paths):
            check_stop()
            now.append(seen)
    finally:
        pool.shutdown(cancel_futures=True)
    if now != before:
        with suppress(OSError):  # an economy only
            memory.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, sealed(json.dumps(now)))
    return of_parts(*(one.xxh3 for one in now)) if now else None


def _named(source: Source, encoder: NamesFiles, check_stop: Callable[[], None]) -> Sequence[str]:
    """The files in the order in which they are first named."""
    found: dict[str, None] = {}
    for row in sources.read_leniently(source):
        check_stop()
        pulse.moving()
        if isinstance(row, Record):
            found.update(dict.fromkeys(map(str, encoder.files(row))))
    return list(found)


def _look(known: dict[str, Seen], path: str) -> Seen:
    before = known.get(path)
    try:
        there = Path(path).stat()
        if before is not None and (before.size, before.time) == (there.st_size, there.st_mtime_ns):
            return before
        checksum = xxhash.xxh3_128()
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                pulse.moving()
                checksum.update(chunk)
    except OSError:  # what is wrong with it is said where it is to be used
        return Seen(path, -1, 0, "")
    return Seen(path, there.st_size, there.st_mtime_ns, checksum.hexdigest())


def _read(path: Path) -> list[Seen] | None:
    try:
        return [Seen(*one) for one in json.loads(unsealed(path.read_text(encoding="utf-8")))]
    except (OSError, ValueError, TypeError):
        return None
