"""The documents of a token cache, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
class Corpus:
    """N documents, or pieces of documents, mapped from disk. In memory: `sizes`, int32 [N]."""

    meta: Meta
    sizes: npt.NDArray[np.int32]
    _numbers: Mapping[str, npt.NDArray[Any]]
    _offsets: Mapping[str, npt.NDArray[np.int64]]
    _values: Mapping[str, npt.NDArray[Any]]
    _watches: Mapping[str, Watch] = field(default_factory=dict)  # of columns, as far as they are verified
    _pieces: Pieces | None = None  # the documents, as far as they are not those of the folder

    @classmethod
    def open(cls, path: Path) -> Corpus:
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
        return cls(meta, np.array(numbers["sizes"]), numbers, offsets, values, watches)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def targets(self) -> npt.NDArray[np.int32]:
        """`Document.targets` of each, int32 [N], mapped."""
        return self._numbers["targets"] if self._pieces is None else self._pieces.index["targets"]

    @cached_property
    def _wholes(self) -> Int64s | None:
        """The documents of the folder that these are, or are pieces of, rising; None: all of them."""
        return None if self._pieces is None else distinct(self._pieces.index["document"])

    @property
    def contents(self) -> npt.NDArray[np.uint64]:
        """Hashes of whole documents, uint64 [W]: equal documents have the same one."""
        found: npt.NDArray[np.uint64] = self._numbers["contents"]
        return found if self._wholes is None else found[self._wholes]

    @property
    def records(self) -> Int64s:
        """Indexes of the records of whole documents, int64 [W]."""
        found: Int64s = self._numbers["records"]
        return found if self._wholes is None else found[self._wholes]

    def in_pieces(self, pieces: Pieces, meta: Meta) -> Corpus:
        """Pieces of the documents of a folder, and what is to be said of them."""
        return replace(self, meta=meta, sizes=np.ascontiguousarray(pieces.index["size"]), _pieces=pieces)

    def true_values(self, column: str, documents: Int64s, begins: Int64s, ends: Int64s) -> Int64s:
        """How many values of a column of one byte are true between these places of these documents of the folder, int64
        of the same length. Raises Damaged."""
        values, first = np.asarray(self._values[column]).view(np.uint8), self._offsets[column][documents]
        begins, ends = first + begins, first + ends
        found = np.zeros(len(documents), np.int64)
        far = np.flatnonzero(np.diff(begins) > _FAR) + 1
        for some in np.split(np.arange(len(documents)), np.union1d(far, np.flatnonzero(np.diff(begins // _BLOCK)) + 1)):
            if len(some):
                low, high = int(begins[some[0]]), int(ends[some[-1]])
                self._verify(column, low, high)
                found[some] = _sums(values[low:high], begins[some] - low, ends[some] - low)
        return found

    def largest_token(self) -> int:
        """Of all documents. Reads all of them. Raises Damaged."""
        for name, values in self._values.items():
            self._verify(name, 0, len(values))
        return max(int(its.max(initial=0)) for its in self._values.values() if its.dtype == np.int32)

    def document(self, i: int) -> Document:
        """Document i, 0 <= i < len (else IndexError). Its arrays are read-only views of the mapped files.

        Raises Damaged if what is to be read is not what was written.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        if self._pieces is None:
            return self._whole(i)
        return self._pieces.document(i, self._whole(int(self._pieces.index["document"][i])))

    def _whole(self, i: int) -> Document:
        """Document i of the folder."""
        columns = {}
        for name, values in self._values.items():
            begin, end = self._offsets[name][i : i + 2].tolist()
            self._verify(name, begin, end)
            columns[name] = np.asarray(values[begin:end])
        numbers = {name: int(array[i]) for name, array in self._numbers.items()}
        return Document(columns, numbers["sizes"], numbers["targets"], numbers["records"])

    def _verify(self, column: str, begin: int, end: int) -> None:
        if column in self._watches:
            itemsize = self._values[column].itemsize
            self._watches[column].check(begin * itemsize, end * itemsize)


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
    return np.memmap(path, dtype, mode="r")
