"""The data types between pipeline stages: a record as read, a document as the model sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt
import xxhash

from distft.errors import UserError

Column = npt.NDArray[Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """One example as it was read.

    Attributes:
        where: for people: "path:line" or "path[index]".
        source: which of several it is from, counted from 0.
    """

    where: str
    fields: dict[str, Any]
    source: int = 0


@dataclass(frozen=True)
class Broken:
    """What stands where a record should, and cannot be read. "{where} {why}" is a sentence for people."""

    where: str
    why: str


@dataclass(frozen=True, eq=False)
class Document:
    """One example as the model sees it.

    Attributes:
        columns: arrays of one dimension by name; the task that encodes it says which, and of which dtype.
        size: what it takes of a row: tokens, or milliseconds of speech.
        targets: how much is to be predicted in it, for the counts that are shown.
        record: index of its record in the source.
        part: which of several tasks it is for.
        source: which of several it is from, counted from 0.
        draw: a number for this place in the run. Whatever is random in a batch starts from it, so that it depends
            neither on history nor on the rank.
    """

    columns: Mapping[str, Column]
    size: int
    targets: int = 1
    record: int = 0
    part: str | None = None
    draw: int = 0
    source: int = 0

    def __getitem__(self, name: str) -> Column:
        return self.columns[name]


def content_of(columns: Mapping[str, Column]) -> int:
    """A hash of the columns of a document: equal documents have the same one. 64 bits."""
    content = xxhash.xxh3_64()
    for name, values in columns.items():
        content.update(f"{name} {len(values)} ".encode())
        content.update(np.ascontiguousarray(values).data)
    return content.intdigest()


@dataclass(frozen=True)
class Encoded:
    """What became of a record.

    Attributes:
        documents: none, one or several.
        notes: how often what had to be done to it ("were truncated").
        warnings: for some of these notes a sentence that says more; of many records the first one is shown.
    """

    documents: list[Document]
    notes: Mapping[str, int] = field(default_factory=dict)
    warnings: Mapping[str, str] = field(default_factory=dict)


class Encoder(Protocol):
    """Turns records into documents for one task."""

    @property
    def digest(self) -> str:
        """sha256 (hex) of all that decides what `encode` returns for a record."""

    @property
    def columns(self) -> Mapping[str, str]:
        """numpy dtypes of the columns, by name."""

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        """Documents of one record.

        Args:
            answered: False where the record is to be predicted: what is to be learned may lack.

        Raises:
            UserError: naming the record and what is wrong with it.
        """


@runtime_checkable
class NamesFiles(Protocol):
    """What an encoder has besides, if records name files that it reads, such as recordings."""

    def files(self, record: Record) -> Sequence[Path]:
        """Those that `encode` would read, whether they are there or not."""


@runtime_checkable
class Cuts(Protocol):
    """What an encoder has besides, if it cuts documents that are longer than a row: they are kept whole."""

    @property
    def uncut(self) -> Encoder:
        """Encodes the same records as whole documents, also those without anything to predict."""


@runtime_checkable
class BatchEncoder(Protocol):
    """What an encoder has besides, if many records at once take it less time."""

    def encode_many(self, records: Sequence[Record]) -> list[Encoded | UserError]:
        """For each record what `encode` returns or raises."""


def encode_many(encoder: Encoder, records: Sequence[Record]) -> list[Encoded | UserError]:
    """For each record what `encoder.encode` returns or raises."""
    return encoder.encode_many(records) if isinstance(encoder, BatchEncoder) else each(records, encoder.encode)


def each(records: Sequence[Record], make: Callable[[Record], T]) -> list[T | UserError]:
    """What is made of each record; the UserError that this raises, for those it cannot be made of."""
    made: list[T | UserError] = []
    for record in records:
        try:
            made.append(make(record))
        except UserError as error:
            made.append(error)
    return made
