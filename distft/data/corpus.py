"""The documents of a token cache, memory-mapped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distft.data.cache_writer import NUMBERS
from distft.data.checksums import Checksums, Damaged, Watch
from distft.data.pieces import Int64s, Pieces
from distft.data.records import Document
from distft.errors import UserError

_FAR, _BLOCK = 1 << 16, 1 << 26  # values that are passed over rather than read; that are read at a time

META = "meta.json"  # the file of a cache folder that is written last


@dataclass(frozen=True)
class Meta:
    """What is in a cache folder and what was left out."""

    source: str  # as the recipe names it
    columns: dict[str, str]  # dtypes by name
    records: int = 0  # read
    documents: int = 0
    size: int = 0  # of all documents
    targets: int = 0  # to predict
    notes: dict[str, int] = field(default_factory=dict)  # what was done to how many
    warnings: dict[str, str] = field(default_factory=dict)  # of some of these notes more, for the first record

    @classmethod
    def read(cls, path: Path) -> Meta:
        """Of a cache folder. Raises Damaged if it is missing, or not what was written."""
        try:
            Checksums(path).check(META)
            return cls(**json.loads((path / META).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Damaged(path, str(error)) from error

    def check_usable(self) -> None:
        """Raises UserError if there is nothing to learn from."""
        if self.records == 0:
            raise UserError(f"data {self.source} has no records")
        if self.documents == 0:
            why = "; ".join(f"{number:,} {note}" for note, number in self.notes.items())
            why = f"{why and ': '}{why}"
            raise UserError(f"none of the {self.records} records of {self.source} can be used for training{why}")


@dataclass(frozen=True, eq=False)
class CacheFolder:
    """The documents of one cache folder, or pieces of them, as far as they are mapped.

    Attributes:
        watches: of columns, what of them is verified.
        pieces: None: the documents are those of the folder.
    """

    meta: Meta
    numbers: Mapping[str, npt.NDArray[Any]]
    offsets: Mapping[str, npt.NDArray[np.int64]]
    values: Mapping[str, npt.NDArray[Any]]
    watches: Mapping[str, Watch] = field(default_factory=dict)
    pieces: Pieces | None = None

    @classmethod
    def open(cls, path: Path) -> CacheFolder:
        """Opens a folder made by `build_cache`. Raises Damaged if it is missing, or its index is not what was written;
        the documents themselves are verified when they are read."""
        meta = Meta.read(path)
        try:
            sums = Checksums(path)
            for name in index_of(meta):
                sums.check(name)
            numbers = {name: _mapped(path / f"{name}.bin", dtype) for name, dtype in NUMBERS.items()}
            offsets = {name: _mapped(path / f"{name}.offsets.bin", "int64") for name in meta.columns}
            values = {name: _mapped(path / column_of(name), dtype) for name, dtype in meta.columns.items()}
            for name, its in values.items():
                if its.nbytes != (wanted := sums.files[column_of(name)].bytes):
                    raise ValueError(f"{column_of(name)} has {its.nbytes:,} bytes and not {wanted:,}")
        except (OSError, ValueError, KeyError) as error:
            raise Damaged(path, str(error)) from error
        watches = {name: Watch(path, column_of(name), its, sums.files[column_of(name)]) for name, its in values.items()}
        return cls(meta, numbers, offsets, values, watches)

    @property
    def sizes(self) -> npt.NDArray[np.int32]:
        """Of each document, int32 [N], mapped."""
        return self.numbers["sizes"] if self.pieces is None else self.pieces.index["size"]

    @property
    def targets(self) -> npt.NDArray[np.int32]:
        """`Document.targets` of each, int32 [N], mapped."""
        return self.numbers["targets"] if self.pieces is None else self.pieces.index["targets"]

    @cached_property
    def _wholes(self) -> Int64s | None:
        """The documents of the folder that these are, or are pieces of, rising; None: all of them."""
        return None if self.pieces is None else distinct(self.pieces.index["document"])

    @property
    def contents(self) -> npt.NDArray[np.uint64]:
        """Hashes of whole documents, uint64 [W]: equal documents have the same one."""
        found: npt.NDArray[np.uint64] = self.numbers["contents"]
        return found if self._wholes is None else found[self._wholes]

    @property
    def records(self) -> Int64s:
        """Indexes of the records of whole documents, int64 [W]."""
        found: Int64s = self.numbers["records"]
        return found if self._wholes is None else found[self._wholes]

    @cached_property
    def record_of(self) -> Int64s:
        """The index of each document's record, int64 [N], rising."""
        found: Int64s = self.numbers["records"]
        return found if self.pieces is None else found[self.pieces.index["document"]]

    def in_pieces(self, pieces: Pieces, meta: Meta) -> CacheFolder:
        """Pieces of the documents of this folder, and what is to be said of them."""
        return replace(self, meta=meta, pieces=pieces)

    def true_values(self, column: str, documents: Int64s, begins: Int64s, ends: Int64s) -> Int64s:
        """How many values of a column of one byte are true between these places of these documents of the folder, int64
        of the same length. Raises Damaged."""
        values, first = np.asarray(self.values[column]).view(np.uint8), self.offsets[column][documents]
        begins, ends = first + begins, first + ends
        found = np.zeros(len(documents), np.int64)
        far = np.flatnonzero(np.diff(begins) > _FAR) + 1
        for some in np.split(np.arange(len(documents)), np.union1d(far, np.flatnonzero(np.diff(begins // _BLOCK)) + 1)):
            if len(some):
                low, high = int(begins[some[0]]), int(ends[some[-1]])
                self.verify(column, low, high)
                found[some] = _sums(values[low:high], begins[some] - low, ends[some] - low)
        return found

    def largest_token(self) -> int:
        """Of all documents. Reads all of them. Raises Damaged."""
        for name, values in self.values.items():
            self.verify(name, 0, len(values))
        return max(int(its.max(initial=0)) for its in self.values.values() if its.dtype == np.int32)

    def document(self, i: int) -> Document:
        """Document i. Raises Damaged."""
        if self.pieces is None:
            return self._whole(i)
        return self.pieces.document(i, self._whole(int(self.pieces.index["document"][i])))

    def _whole(self, i: int) -> Document:
        """Document i of the folder."""
        columns = {}
        for name, values in self.values.items():
            begin, end = self.offsets[name][i : i + 2].tolist()
            self.verify(name, begin, end)
            columns[name] = np.asarray(values[begin:end])
        numbers = {name: int(array[i]) for name, array in self.numbers.items()}
        return Document(columns, numbers["sizes"], numbers["targets"], numbers["records"])

    def verify(self, column: str, begin: int, end: int) -> None:
        """Raises Damaged if some of these values are not what was written."""
        if column in self.watches:
            itemsize = self.values[column].itemsize
            self.watches[column].check(begin * itemsize, end * itemsize)


class Corpus:
    """N documents, mapped from one cache folder or from several, one after the other.

    Attributes:
        meta: of all of them together.
        sizes: of the documents, int32 [N], in memory.
        targets: `Document.targets` of each, int32 [N]; mapped if there is one folder.
        first_documents, first_records: with which each folder begins, and the ends, int64 [folders + 1].
    """

    def __init__(self, *folders: CacheFolder) -> None:
        self._folders = folders
        self.meta = _together([one.meta for one in folders])
        self.sizes: npt.NDArray[np.int32] = np.concatenate([one.sizes for one in folders])
        targets = [one.targets for one in folders]
        self.targets: npt.NDArray[np.int32] = targets[0] if len(targets) == 1 else np.concatenate(targets)
        self.first_documents = np.cumsum([0, *(one.meta.documents for one in folders)])
        self.first_records = np.cumsum([0, *(one.meta.records for one in folders)])

    @classmethod
    def open(cls, *paths: Path) -> Corpus:
        """Opens folders made by `build_cache`. Raises Damaged, see `CacheFolder.open`."""
        return cls(*map(CacheFolder.open, paths))

    def __len__(self) -> int:
        return len(self.sizes)

    def largest_token(self) -> int:
        """Of all documents. Reads all of them. Raises Damaged."""
        return max(folder.largest_token() for folder in self._folders)

    @cached_property
    def contents(self) -> npt.NDArray[np.uint64]:
        """Hashes of whole documents, uint64 [W]: equal documents have the same one."""
        return np.concatenate([folder.contents for folder in self._folders])

    def place(self, whole: int) -> str:
        """Of whole document number `whole`, for people."""
        for folder in self._folders:
            if whole < len(folder.contents):
                return f"record {int(folder.records[whole]) + 1:,} of {folder.meta.source}"
            whole -= len(folder.contents)
        raise IndexError(whole)

    def places(self, records: Sequence[int]) -> list[int]:
        """The first document of each of these records or, if it has none, of those behind it. Of one folder."""
        [folder] = self._folders
        found: list[int] = np.searchsorted(folder.record_of, np.asarray(records, np.int64)).tolist()
        return found

    def document(self, i: int) -> Document:
        """Document i, 0 <= i < len (else IndexError). Its arrays are read-only views of the mapped files.

        Raises Damaged if what is to be read is not what was written.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        if len(self._folders) == 1:
            return self._folders[0].document(i)
        number = int(np.searchsorted(self.first_documents, i, side="right")) - 1
        found = self._folders[number].document(i - int(self.first_documents[number]))
        return replace(found, record=int(self.first_records[number]) + found.record)


def _together(metas: Sequence[Meta]) -> Meta:
    if len(metas) == 1:
        return metas[0]
    counts = {key: sum(getattr(one, key) for one in metas) for key in ("records", "documents", "size", "targets")}
    notes: Counter[str] = Counter()
    warnings: dict[str, str] = {}
    for one in metas:
        notes.update(one.notes)
        warnings = {**one.warnings, **warnings}
    return Meta(
        " + ".join(one.source for one in metas), metas[0].columns, **counts, notes=dict(notes), warnings=warnings
    )


def distinct(ordered: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The different ones of values that are in order."""
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(ordered) else ordered


def _sums(values: npt.NDArray[np.uint8], begins: Int64s, ends: Int64s) -> Int64s:
    """Sums of stretches of values that come one behind the other, 0 where one is empty."""
    found, some = np.zeros(len(begins), np.int64), begins < ends
    if some.any():
        places = np.stack([begins[some], ends[some]], 1).ravel()
        found[some] = np.add.reduceat(values[: places[-1]], places[:-1], dtype=np.int32)[::2]
    return found


def column_of(name: str) -> str:
    """The file that holds the values of a column."""
    return f"{name}.column.bin"


def index_of(meta: Meta) -> list[str]:
    """The files of a cache folder that say where documents are, and what of them is known without reading them."""
    return [f"{name}.bin" for name in NUMBERS] + [f"{name}.offsets.bin" for name in meta.columns]


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:  # a column that is empty in all documents; there is nothing to map
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))  # a plain view of it is cut several times faster
