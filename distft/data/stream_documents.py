"""The documents of a stream: records encoded when they are wanted, or looked up in the token cache.

Both give the same documents, to the byte, so a run cannot tell them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from distft.data import sources
from distft.data.bad_records import Bad
from distft.data.corpus import Corpus
from distft.data.record_index import RecordIndex
from distft.data.records import Document, Encoder
from distft.data.sources import Source
from distft.errors import UserError
from distft.process import pulse


@dataclass(eq=False)
class Encoded:
    """Documents that are made of records.

    Attributes:
        warn: is given a sentence on the first record of a kind about which there is more to say.
        notes: how often what was done to records ("were truncated"), so far.
    """

    index: RecordIndex
    source: Source
    encoder: Encoder
    warn: Callable[[str], None] = lambda text: None
    notes: Counter[str] = field(default_factory=Counter)
    _warned: set[str] = field(default_factory=set)
    _bad: list[Bad] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.index)

    def count(self, block: int) -> int:
        return self.index.count(block)

    def of(self, block: int, first: int = 0) -> Iterator[Sequence[Document]]:
        for number, row in enumerate(self.index.read(block)[first:], self.index.first(block) + first):
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
        return Document(columns, document.size, document.targets, record)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Documents of a folder of the token cache."""

    index: RecordIndex
    source: Source
    corpus: Corpus
    notes: Mapping[str, int] = field(default_factory=dict)  # they were told when the folder was filled

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.index)

    def count(self, block: int) -> int:
        return self.index.count(block)

    def of(self, block: int, first: int = 0) -> Iterator[Sequence[Document]]:
        begin, end = self.index.first(block), self.index.first(block) + self.index.count(block)
        ends = self.corpus.places(range(begin + first, end + 1))
        for begin, end in pairwise(ends):
            yield [self.corpus.document(place) for place in range(begin, end)]

    def left_out(self) -> list[Bad]:
        """The folder lists its own."""
        return []
