"""The documents of a stream: records encoded when they are wanted, or looked up in the token cache.

Both give the same documents, to the byte, so a run cannot tell them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise

import numpy as np
import numpy.typing as npt

from distft.data import sources
from distft.data.bad_records import Bad
from distft.data.corpus import Corpus
from distft.data.record_index import RecordIndex
from distft.data.records import Document, Encoder
from distft.data.sources import Source
from distft.errors import UserError
from distft.process import pulse


@dataclass(eq=False)
class _Indexed:
    """The records of a source by blocks."""

    index: RecordIndex
    source: Source

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.index)

    def count(self, block: int) -> int:
        return self.index.count(block)


@dataclass(eq=False)
class Encoded(_Indexed):
    """Documents that are made of records.

    Attributes:
        base: the number of the first record, where the source is one of several.
        number: of the source then, counted from 0.
        warn: is given a sentence on the first record of a kind about which there is more to say.
        notes: how often what was done to records ("were truncated"), so far.
    """

    encoder: Encoder
    base: int = 0
    number: int = 0
    warn: Callable[[str], None] = lambda text: None
    notes: Counter[str] = field(default_factory=Counter)
    _warned: set[str] = field(default_factory=set)
    _bad: list[Bad] = field(default_factory=list)

    def of(self, block: int, first: int = 0) -> Iterator[Sequence[Document]]:
        for number, row in enumerate(islice(self.index.read(block), first, None), self.index.first(block) + first):
            pulse.moving()
            try:
                record = sources.whole(row)
                made = self.encoder.encode(record)
            except UserError as error:
                if self.source.bad_budget is None:
                    raise
                self._bad.append(Bad(number, row.where, str(error)))
                yield ()
                continue
            self._note(made.notes, made.warnings)
            yield [self._stored(document, number) for document in made.documents]

    def _note(self, notes: Mapping[str, int], warnings: Mapping[str, str]) -> None:
        self.notes.update(notes)
        for about in warnings.keys() - self._warned:
            self._warned.add(about)
            self.warn(f"warning: {warnings[about]}")

    def left_out(self) -> list[Bad]:
        """Bad records that were met since this was asked last."""
        return [self._bad.pop() for _ in range(len(self._bad))]

    def _stored(self, document: Document, record: int) -> Document:
        """As the token cache would give it."""
        columns = {name: np.ascontiguousarray(document[name], dtype) for name, dtype in self.encoder.columns.items()}
        return Document(columns, document.size, document.targets, self.base + record, source=self.number)


@dataclass(eq=False)
class Prepared(_Indexed):
    """Documents of a folder of the token cache. `base`, `number`: as of `Encoded`."""

    corpus: Corpus
    base: int = 0
    number: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)  # they were told when the folder was filled

    def of(self, block: int, first: int = 0) -> Iterator[Sequence[Document]]:
        begin, end = self.index.first(block), self.index.first(block) + self.index.count(block)
        ends = self.corpus.places(range(begin + first, end + 1))
        for begin, end in pairwise(ends):
            found = map(self.corpus.document, range(begin, end))
            yield [replace(one, record=self.base + one.record, source=self.number) for one in found]

    def left_out(self) -> list[Bad]:
        """The folder lists its own."""
        return []


@dataclass(frozen=True, eq=False)
class Joined:
    """Documents of several sources as if they were one: the blocks of one after those of another."""

    parts: Sequence[Encoded | Prepared]

    @property
    def name(self) -> str:
        return ", ".join(part.name for part in self.parts)

    @cached_property
    def _blocks(self) -> npt.NDArray[np.int64]:
        """Of the parts before each, int64 [parts + 1]."""
        return np.cumsum([0, *map(len, self.parts)])

    def __len__(self) -> int:
        return int(self._blocks[-1])

    def _part(self, block: int) -> tuple[Encoded | Prepared, int]:
        """That a block is of, and the block's number there."""
        part = int(np.searchsorted(self._blocks, block, side="right")) - 1
        return self.parts[part], block - int(self._blocks[part])

    def count(self, block: int) -> int:
        part, own = self._part(block)
        return part.count(own)

    def of(self, block: int, first: int = 0) -> Iterator[Sequence[Document]]:
        part, own = self._part(block)
        return part.of(own, first)
