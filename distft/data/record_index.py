"""The index of a source's records: where each block of 64 is, so that any of them is read at once.

It is made in one pass over each file and kept in the token cache, found by the file's name, size and time. Text that
is compressed, and tables, cannot be sought: of such a file a copy is kept beside its index, each block a zstd frame of
its own.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from distft.data import filters, record_blocks
from distft.data.leftovers import used
from distft.data.record_blocks import Form, Piece
from distft.data.records import Broken, Record
from distft.data.sources import Source
from distft.data.token_cache import root_of, writable
from distft.errors import UserError
from distft.process import pulse
from distft.run.digest import of_parts
from distft.run.files import complete_file

FORMAT = 1  # of the files; raise it when they change
_NAMES = ("begins", "lengths", "sizes", "firsts", "records")  # of its arrays
_EVERY = 16  # blocks between two calls of `progress`

_Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FileIndex:
    """The B blocks of one file.

    Attributes:
        stamp: size and time of the file when it was indexed.
        store: what is read, the file or its copy.
        begins, lengths: of each block there, in bytes; int64 [B].
        sizes: of each block's content, in bytes; int64 [B]. The same as `lengths` of a file that is not packed.
        firsts: the first line, or row, of each block; int64 [B].
        records: that each block has, 64 at most; int64 [B].
    """

    form: Form
    stamp: tuple[int, int]
    store: Path
    begins: _Int64s
    lengths: _Int64s
    sizes: _Int64s
    firsts: _Int64s
    records: _Int64s

    def __len__(self) -> int:
        return len(self.begins)

    def read(self, block: int) -> Iterator[Record | Broken]:
        """The records of a block. Raises UserError if the file is not what it was."""
        if _stamp(self.form.path) != self.stamp:
            raise UserError(f"data file {self.form.path} changed while being read; run the same command again")
        try:
            with self.store.open("rb") as file:
                file.seek(int(self.begins[block]))
                content = file.read(int(self.lengths[block]))
            if self.form.packed:
                content = _codec().decompress(content, int(self.sizes[block]), asbytes=True)
        except OSError as error:  # pyarrow's too
            raise UserError(f"cannot read {self.store}: {error.strerror or error}") from error
        return self.form.records(content, int(self.firsts[block]))


@dataclass(frozen=True, eq=False)
class RecordIndex:
    """All blocks of a source, file after file. Records are numbered as `sources.read_leniently` gives them."""

    files: Sequence[FileIndex]

    @cached_property
    def _blocks(self) -> _Int64s:
        """Of the files before each, int64 [files + 1]."""
        return np.cumsum([0, *map(len, self.files)])

    @cached_property
    def _records(self) -> _Int64s:
        """Before each block, int64 [blocks + 1]."""
        return np.cumsum(np.concatenate([[0], *(file.records for file in self.files)]))

    def __len__(self) -> int:
        """How many blocks there are."""
        return int(self._blocks[-1])

    @property
    def records(self) -> int:
        return int(self._records[-1])

    def first(self, block: int) -> int:
        """The number of the first record of a block."""
        return int(self._records[block])

    def count(self, block: int) -> int:
        """The records of a block."""
        return int(self._records[block + 1] - self._records[block])

    def read(self, block: int) -> Iterator[Record | Broken]:
        file = int(np.searchsorted(self._blocks, block, side="right")) - 1
        return self.files[file].read(block - int(self._blocks[file]))


def index_of(
    files: Sequence[Source],
    cache: str | None,
    check_stop: Callable[[], None] = lambda: None,
    progress: Callable[[int], None] = lambda records: None,
) -> RecordIndex:
    """The index of a source, made first of the files whose index the cache does not hold.

    Args:
        files: a source each, one per file.
        check_stop: raises to give up; called every few blocks, as is `progress`, with the number of records so far.

    Raises:
        UserError: a file cannot be read, or not by blocks; there are no records; the cache cannot be written.
    """
    root, found, before = root_of(cache), [], 0
    for source in files:

        def show(records: int, before: int = before) -> None:
            check_stop()
            pulse.moving()
            progress(before + records)

        found.append(_file_index(source, root, show))
        before += int(found[-1].records.sum())
    if before == 0:
        raise UserError(f"data {', '.join(source.name for source in files)} has no records")
    return RecordIndex(found)


def _file_index(source: Source, root: Path, show: Callable[[int], None]) -> FileIndex:
    form = record_blocks.form_of(source)
    stamp = _stamp(form.path)
    known_by = [FORMAT, str(form.path.absolute()), stamp, form.kind, form.mark, form.encoding]
    copy = root / f"index-{of_parts(*known_by)[:32]}.zst"
    name = of_parts(*known_by, filters.described(form.filter))[:32]
    path, store = root / f"index-{name}.npz", copy if form.packed else form.path
    if (known := _read(path)) is None or not store.exists():
        with writable(root):
            root.mkdir(parents=True, exist_ok=True)
            known = _write_copy(form, store, show) if form.packed else _scanned(form, show)
            if _stamp(form.path) != stamp:
                raise UserError(f"data {source.name} changed while being read; run the same command again")
            with complete_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **{name: known[name] for name in _NAMES}, allow_pickle=False)
    for kept in {path, copy}:
        used(kept)
    return FileIndex(form, stamp, store, **known)


def _read(path: Path) -> dict[str, _Int64s] | None:
    """None if there is no index, or a damaged one."""
    try:
        with path.open("rb") as file, np.load(file) as content:
            return {name: content[name] for name in _NAMES}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _scanned(form: Form, show: Callable[[int], None]) -> dict[str, _Int64s]:
    return _columns((piece, piece.begin, len(piece.content)) for piece in _shown(form, show))


def _write_copy(form: Form, store: Path, show: Callable[[int], None]) -> dict[str, _Int64s]:
    with complete_file(store) as temporary, temporary.open("wb") as file:
        return _columns(_packed(_shown(form, show), file))


def _packed(pieces: Iterator[Piece], file: BinaryIO) -> Iterator[tuple[Piece, int, int]]:
    codec = _codec()
    for piece in pieces:
        begin = file.tell()
        yield piece, begin, file.write(codec.compress(piece.content, asbytes=True))


def _shown(form: Form, show: Callable[[int], None]) -> Iterator[Piece]:
    records = 0
    for number, piece in enumerate(form.pieces()):
        if number % _EVERY == 0:
            show(records)
        records += piece.records
        yield piece


def _columns(blocks: Iterator[tuple[Piece, int, int]]) -> dict[str, _Int64s]:
    """Of each block with where it is in what is read, and how long."""
    rows = ((begin, length, len(piece.content), piece.first, piece.records) for piece, begin, length in blocks)
    table = np.fromiter(rows, np.dtype([(name, np.int64) for name in _NAMES]))
    return {name: np.ascontiguousarray(table[name]) for name in _NAMES}


def _codec() -> Any:
    import pyarrow  # type: ignore[import-untyped]

    return pyarrow.Codec("zstd")


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"cannot read data file {path}: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns
