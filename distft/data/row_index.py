"""The rows of a token cache, kept beside it: computed once, then memory-mapped by all ranks and by later runs.

The tokens stay as they are: each way to put these documents into rows has a file of its own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from distft.data.leftovers import used
from distft.data.packing import Rows
from distft.run.files import complete_file

FORMAT = 1  # of the file: uint64 [3] (rows, documents, checksum of the rest), then `Rows.offsets`, `Rows.documents`
FEWEST = 100_000  # documents; fewer are put into rows as soon as such a file is found

_HEADER = 3
_DAY = 86400.0  # seconds

Sizes = npt.NDArray[np.int32]
Way = Callable[[Sizes, int, int], Rows]  # `pack`, or `bucket`


def rows_of(folder: Path, sizes: Sizes, way: Way, row_tokens: int, seed: int) -> Rows:
    """What `way` makes of the documents of a cache folder, kept beside it if there are many.

    A damaged file is made anew. Where none can be written, each process has rows of its own. Raises ValueError as
    `way`.
    """
    if len(sizes) < FEWEST:
        return way(sizes, row_tokens, seed)
    path = path_of(folder, sizes, way, row_tokens, seed)
    found = read(path)
    used(path)
    if found is None:
        found = way(sizes, row_tokens, seed)
        with suppress(OSError):  # the folder is somebody else's, or full
            write(path, found)
            found = read(path) or found
    return found


def path_of(folder: Path, sizes: Sizes, way: Way, row_tokens: int, seed: int) -> Path:
    """Named by all that decides what is in it."""
    known = [FORMAT, xxhash.xxh3_128_hexdigest(np.ascontiguousarray(sizes).data), way.__name__, row_tokens, seed]
    return folder.with_name(f"{folder.name}.rows-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}")


def read(path: Path) -> Rows | None:
    """Mapped, not loaded; None where there is no such file, or a damaged one."""
    try:
        content = np.asarray(np.memmap(path, np.int64, mode="r"))
    except (OSError, ValueError):  # absent, not ours to read; empty, or no whole number of integers
        return None
    if len(content) < _HEADER:
        return None
    rows, documents, checksum = content[:_HEADER].view(np.uint64).tolist()
    body = content[_HEADER:]
    if len(body) != rows + 1 + documents or xxhash.xxh3_64_intdigest(body.data) != checksum:
        return None
    return Rows(body[: rows + 1], body[rows + 1 :])


def write(path: Path, rows: Rows) -> None:
    """Whole or not at all. Raises OSError."""
    for left in path.parent.glob(f".{path.name}.*"):  # by one that was killed
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - _DAY:
                left.unlink()
    checksum = xxhash.xxh3_64()
    for array in (rows.offsets, rows.documents):
        checksum.update(np.ascontiguousarray(array).data)
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.array([len(rows), len(rows.documents), checksum.intdigest()], np.uint64).tofile(file)
        rows.offsets.tofile(file)
        rows.documents.tofile(file)
