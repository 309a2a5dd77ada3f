"""The documents of a token cache, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
class Corpus:
    """N documents, mapped from disk. In memory: `sizes`, int32 [N]."""

    meta: Meta
    sizes: npt.NDArray[np.int32]
    _numbers: Mapping[str, npt.NDArray[Any]]
    _offsets: Mapping[str, npt.NDArray[np.int64]]
    _values: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def open(cls, path: Path) -> Corpus:
        """Opens a folder made by `build`. Raises UserError if it is missing or damaged."""
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
        return cls(meta, np.array(numbers["sizes"]), numbers, offsets, values)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def targets(self) -> npt.NDArray[np.int32]:
        """`Document.targets` of each, int32 [N], mapped."""
        return self._numbers["targets"]

    def largest_token(self) -> int:
        """Of all documents. Reads all of them."""
        return max(int(its.max(initial=0)) for its in self._values.values() if its.dtype == np.int32)

    def places(self, records: Sequence[int]) -> list[int]:
        """The first document of each of these records or, if it has none, of those behind it."""
        found: list[int] = np.searchsorted(self._numbers["records"], np.asarray(records, np.int64)).tolist()
        return found

    def document(self, i: int) -> Document:
        """Document i, 0 <= i < len (else IndexError). Its arrays are read-only views of the mapped files."""
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        columns = {}
        for name, values in self._values.items():
            offsets = self._offsets[name]
            columns[name] = np.asarray(values[int(offsets[i]) : int(offsets[i + 1])])
        numbers = {name: int(array[i]) for name, array in self._numbers.items()}
        return Document(columns, numbers["sizes"], numbers["targets"], numbers["records"])


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:  # a column that is empty in all documents; there is nothing to map
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")
