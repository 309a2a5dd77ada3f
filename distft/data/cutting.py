"""Cutting: the documents of a cache folder as pieces of at most a row, by an index that is kept beside the folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from distft.data.corpus import CacheFolder, distinct
from distft.data.duplicates import repeated
from distft.data.pieces import EMPTY, LONGEST, PIECE, REPEATED, SPLIT, Cut, Pieces, places_of
from distft.run.files import complete_file

FORMAT = 1  # of the file: uint64 [4] (checksum of the rest; longer, empty, repeated), then the index
FEWEST = 100_000  # documents; the pieces of fewer are found as soon as such a file is

_HEADER = 32  # bytes


def cut_to_rows(
    folder: CacheFolder, path: Path, cut: Cut | None, before: Sequence[CacheFolder] | None = None
) -> CacheFolder:
    """The same documents, those that are longer than a row as the task cuts them; those without targets are left out.

    Where there are many, the index is kept beside the folder, and mapped by all processes and later runs.

    Args:
        cut: None: all documents fit.
        before: leave out documents that are equal to one before them, here or in these folders; None: keep them.
    """
    fits = cut is None or ((folder.sizes <= cut.row_tokens).all() and (folder.targets > 0).all())
    if fits and before is None:
        return folder
    if len(folder.sizes) < FEWEST:
        return _as_pieces(folder, find_pieces(folder, cut, before))
    others = [_digest(other.contents) for other in before or ()]
    known = [FORMAT, _digest(folder.sizes), cut, before is None, others]
    kept = path.with_name(f"{path.name}.pieces-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}")
    found = read(kept, cut)
    if found is None:
        found = find_pieces(folder, cut, before)
        with suppress(OSError):  # the folder is somebody else's, or full
            write(kept, found)
            found = read(kept, cut) or found
    return _as_pieces(folder, found)


def _digest(array: npt.NDArray[Any]) -> str:
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data)


def find_pieces(folder: CacheFolder, cut: Cut | None, before: Sequence[CacheFolder] | None) -> Pieces:
    if cut is None:
        index, counts = places_of(folder.sizes, LONGEST, np.ones(len(folder.sizes), np.int64)), [0, 0]
        index["targets"] = folder.targets
    else:
        index = cut.pieces(folder)
        learned = index["targets"] > 0
        index = index if learned.all() else index[learned]
        counts = [int((folder.sizes > cut.row_tokens).sum()), int((~learned).sum())]
    if before is None:
        return Pieces(index, cut, _notes(cut, [*counts, 0]))
    again = np.zeros(len(folder.sizes), bool)  # of the documents
    used = distinct(index["document"])
    contents = [*(other.contents for other in before), folder.contents[used]]
    again[used] = repeated(np.concatenate(contents))[-len(used) :] if len(used) else False
    return Pieces(index[~again[index["document"]]], cut, _notes(cut, [*counts, int(again.sum())]))


def _notes(cut: Cut | None, counts: Sequence[int]) -> dict[str, int]:
    """Of documents that are longer than a row, pieces without targets, documents that are equal to others."""
    return {note: number for note, number in zip(_texts(cut), counts, strict=True) if number}


def _texts(cut: Cut | None) -> tuple[str, str, str]:
    return (SPLIT if cut is None else cut.note), EMPTY, REPEATED


def _as_pieces(folder: CacheFolder, pieces: Pieces) -> CacheFolder:
    """With what `meta` says of pieces instead of whole documents."""
    meta, index = folder.meta, pieces.index
    notes = {**meta.notes, **{note: meta.notes.get(note, 0) + number for note, number in pieces.notes.items()}}
    size, targets = (int(index[name].sum(dtype=np.int64)) for name in ("size", "targets"))
    meta = replace(meta, documents=len(index), size=size, targets=targets, notes=notes)
    return folder.in_pieces(pieces, meta)


def read(path: Path, cut: Cut | None) -> Pieces | None:
    """Mapped, not loaded; None where there is no such file, or a damaged one."""
    try:
        content = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except (OSError, ValueError):  # absent, not ours to read, empty
        return None
    if len(content) < _HEADER or (len(content) - _HEADER) % PIECE.itemsize:
        return None
    checksum, *counts = content[:_HEADER].view(np.uint64).tolist()
    if xxhash.xxh3_64_intdigest(content[8:].data) != checksum:
        return None
    return Pieces(content[_HEADER:].view(PIECE), cut, _notes(cut, counts))


def write(path: Path, pieces: Pieces) -> None:
    """Whole or not at all. Raises OSError."""
    counts = np.array([pieces.notes.get(note, 0) for note in _texts(pieces.cut)], np.uint64)
    checksum = xxhash.xxh3_64(counts.data)
    checksum.update(np.ascontiguousarray(pieces.index).view(np.uint8).data)
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.array([checksum.intdigest()], np.uint64).tofile(file)
        counts.tofile(file)
        pieces.index.tofile(file)
