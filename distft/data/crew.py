"""A crew: processes, each with cores of its own, that encode parts of one source. One of them leads and writes."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


class Store(Protocol):
    """What all processes of a crew read and write, as `torch.distributed.Store` is."""

    def add(self, key: str, amount: int, /) -> int:
        """Adds to a number, 0 at first, and returns what it is then."""

    def set(self, key: str, value: str, /) -> None: ...

    def get(self, key: str, /) -> bytes: ...

    def check(self, keys: list[str], /) -> bool:
        """Whether there is a value under each."""


@dataclass(frozen=True)
class Offer:
    """Parts that others may encode, too.

    Attributes:
        source: which of several it is, counted from 0.
        key: of source and encoder: whoever has another one sees other data.
        folder: in which each part has a folder of its own.
        file: in that folder; says where the parts are. Whoever does not find it sees another disk.
        first: the first part that may be taken.
        cores: numbers of those that the leader's own processes run on, on the first node.
    """

    source: int
    key: str
    folder: str
    file: str
    first: int
    cores: list[int]


@dataclass(frozen=True)
class Told:
    """What became of a part: `records` that were encoded, or a sentence why one of them was `refused`; if there is
    neither, somebody else has to encode it."""

    records: int | None = None
    refused: str | None = None


class Alone:
    """The store of a process that has no others."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = defaultdict(int)
        self._values: dict[str, str] = {}

    def add(self, key: str, amount: int, /) -> int:
        self._numbers[key] += amount
        return self._numbers[key]

    def set(self, key: str, value: str, /) -> None:
        self._values[key] = value

    def get(self, key: str, /) -> bytes:
        return self._values[key].encode()

    def check(self, keys: list[str], /) -> bool:
        return all(key in self._values for key in keys)


@dataclass(frozen=True)
class Crew:
    """What the processes of a crew know of each other.

    Args:
        name: used for nothing else in the store. All sources of a data set have the same one.
    """

    store: Store = field(default_factory=Alone)
    name: str = "tokens"
    source: int = 0

    @property
    def is_alone(self) -> bool:
        return isinstance(self.store, Alone)

    def _of(self, what: object) -> str:
        return f"{self.name}, source {self.source}, {what}"

    def offer(self, offer: Offer) -> None:
        self.store.set(f"{self.name}, offer", json.dumps(asdict(offer)))

    def offered(self) -> Offer | None:
        """The newest offer, of whatever source."""
        key = f"{self.name}, offer"
        return Offer(**json.loads(self.store.get(key))) if self.store.check([key]) else None

    def take(self) -> int:
        """How many parts were taken before, from the first one that was offered; this one is the caller's."""
        return self.store.add(self._of("taken"), 1) - 1

    def is_first(self, whose: str) -> bool:
        """Whether nobody has asked this before about the same cores."""
        return self.store.add(self._of(whose), 1) == 1

    def tell(self, part: int, told: Told) -> None:
        self.store.set(self._of(part), json.dumps(asdict(told)))

    def told(self, part: int) -> Told | None:
        """What became of a part that another one has taken; None: nothing yet."""
        key = self._of(part)
        known: dict[str, Any] | None = json.loads(self.store.get(key)) if self.store.check([key]) else None
        return None if known is None else Told(**known)

    def add(self, records: int) -> int:
        """Counts records that others than the leader have encoded; returns how many there are."""
        return self.store.add(self._of("records"), records)

    def end(self) -> None:
        """No part is wanted any more."""
        self.store.set(self._of("end"), "")

    def is_over(self) -> bool:
        return self.store.check([self._of("end")])
