"""The documents of a token cache, memory-mapped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distft.data.cache_writer import NUMBERS
from distft.data.records import Document
from distft.errors import UserError

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


@dataclass(frozen=True, eq=False)
class CacheFolder:
    """What is mapped of one cache folder."""

    meta: Meta
    numbers: Mapping[str, npt.NDArray[Any]]
    offsets: Mapping[str, npt.NDArray[np.int64]]
    values: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def open(cls, path: Path) -> CacheFolder:
        """Raises UserError if it is missing or damaged."""
        try:
            meta = Meta(**json.loads((path / META).read_text()))
            numbers = {name: _mapped(path / f"{name}.bin", dtype) for name, dtype in NUMBERS.items()}
            offsets = {name: _mapped(path / f"{name}.offsets.bin", "int64") for name in meta.columns}
            values = {name: _mapped(path / f"{name}.column.bin", dtype) for name, dtype in meta.columns.items()}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"token cache {path} cannot be opened ({error}); delete that folder") from error
        whole = all(len(array) == meta.documents for array in numbers.values())
        whole &= all(len(array) == meta.documents + 1 for array in offsets.values())
        if not whole or any(len(values[name]) != offsets[name][-1] for name in meta.columns):
            raise UserError(f"token cache {path} is damaged (a file has the wrong size); delete that folder")
        if any(its[0] != 0 or (np.diff(its) < 0).any() for its in offsets.values()):
            raise UserError(f"token cache {path} is damaged (its documents overlap); delete that folder")
        return cls(meta, numbers, offsets, values)

    def document(self, i: int) -> Document:
        columns = {}
        for name, values in self.values.items():
            offsets = self.offsets[name]
            columns[name] = np.asarray(values[int(offsets[i]) : int(offsets[i + 1])])
        numbers = {name: int(array[i]) for name, array in self.numbers.items()}
        return Document(columns, numbers["sizes"], numbers["targets"], numbers["records"])


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
        self.sizes: npt.NDArray[np.int32] = np.concatenate([one.numbers["sizes"] for one in folders])
        targets = [one.numbers["targets"] for one in folders]
        self.targets: npt.NDArray[np.int32] = targets[0] if len(targets) == 1 else np.concatenate(targets)
        self.first_documents = np.cumsum([0, *(one.meta.documents for one in folders)])
        self.first_records = np.cumsum([0, *(one.meta.records for one in folders)])

    @classmethod
    def open(cls, *paths: Path) -> Corpus:
        """Opens folders made by `build_cache`. Raises UserError if one is missing or damaged."""
        return cls(*map(CacheFolder.open, paths))

    def __len__(self) -> int:
        return len(self.sizes)

    def largest_token(self) -> int:
        """Of all documents. Reads all of them."""
        values = [its for folder in self._folders for its in folder.values.values() if its.dtype == np.int32]
        return max(int(its.max(initial=0)) for its in values)

    def document(self, i: int) -> Document:
        """Document i, 0 <= i < len (else IndexError). Its arrays are read-only views of the mapped files."""
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


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:  # a column that is empty in all documents; there is nothing to map
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")
