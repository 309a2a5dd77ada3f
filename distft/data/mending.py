"""Mending: what is damaged in a cache folder is found, and the records that it is of are encoded again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distft.data import checksums, sources
from distft.data.cache_writer import NUMBERS
from distft.data.checksums import Checksums, Spot
from distft.data.corpus import column_of
from distft.data.records import Encoder
from distft.data.sources import Source
from distft.process import pulse

LARGE = 1 << 30  # bytes; the columns of a larger folder are not all read at the start of a run


def damage(folder: Path, whole: bool) -> list[Spot]:
    """What of a folder is not what was written; nothing if it is sound as far as this has looked.

    The columns of a large folder are verified stretch by stretch when they are first read, and here only if `whole`
    asks for it or somebody found the folder damaged.
    """
    suspect = checksums.mark_of(folder).exists()
    try:
        sums = Checksums(folder)
    except (OSError, ValueError, TypeError):
        return [Spot(checksums.FILE, 0)]
    whole |= suspect or sum(one.bytes for one in sums.files.values()) <= LARGE
    found: list[Spot] = []
    for name in sums.files:
        if whole or not name.endswith(column_of("")):
            try:
                found += sums.spots(name)
            except OSError:
                found.append(Spot(name, 0))
    if suspect and not found:
        forget(folder)
    return found


def forget(folder: Path) -> None:
    """Forget that somebody found it damaged."""
    with suppress(OSError):
        checksums.mark_of(folder).unlink(missing_ok=True)


def mend(folder: Path, spots: Sequence[Spot], source: Source, encoder: Encoder, check_stop: Callable[[], None]) -> bool:
    """Encode again the records whose documents are in damaged stretches of columns, and write over these.

    Others may have the folder mapped: all they can see is right bytes in the place of wrong ones. False if the folder
    is not what was written after that, as where its index is damaged. Raises UserError and OSError.
    """
    columns = {name: dtype for name, dtype in encoder.columns.items() if column_of(name) in {s.file for s in spots}}
    if {spot.file for spot in spots} != {column_of(name) for name in columns}:
        return False
    sums = Checksums(folder)
    for path in (folder / column_of(name) for name in columns):
        if not path.exists() or path.stat().st_size != sums.files[path.name].bytes:
            return False
    records = np.fromfile(folder / "records.bin", NUMBERS["records"])
    begins = {name: _begins(folder, name, dtype) for name, dtype in columns.items()}
    wanted = {
        int(record)
        for spot in spots
        for name in columns
        if column_of(name) == spot.file
        for record in records[_documents(begins[name], spot)]
    }
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / column_of(name)).open("r+b")) for name in columns}
        for number, row in enumerate(sources.read_leniently(source)):
            if number > max(wanted, default=-1):
                break
            check_stop()
            pulse.moving()
            if number in wanted:
                first = int(np.searchsorted(records, number))
                for at, document in enumerate(encoder.encode(sources.whole(row)).documents, first):
                    for name, dtype in columns.items():
                        content = np.ascontiguousarray(document[name], dtype).tobytes()
                        os.pwrite(files[name].fileno(), content, int(begins[name][at]))
        for file in files.values():
            os.fsync(file.fileno())
    return not any(list(sums.spots(column_of(name))) for name in columns)


def _begins(folder: Path, name: str, dtype: str) -> npt.NDArray[np.int64]:
    """Where each document begins in the file of a column, and the last one ends, in bytes: int64 [N + 1]."""
    return np.fromfile(folder / f"{name}.offsets.bin", np.int64) * np.dtype(dtype).itemsize


def _documents(begins: npt.NDArray[np.int64], spot: Spot) -> slice:
    """Those that have a byte in a stretch."""
    begin, end = spot.stretch * checksums.STRETCH, (spot.stretch + 1) * checksums.STRETCH
    return slice(int(np.searchsorted(begins[1:], begin, side="right")), int(np.searchsorted(begins[:-1], end)))
