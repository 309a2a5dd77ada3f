"""Duplicates: documents that are equal to others, and held-out ones that the training data have too.

Documents are told apart by a number that the token cache keeps for each, a hash of 64 bits of all its columns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from distft.data.checksums import sealed, unsealed
from distft.data.corpus import Corpus, distinct
from distft.run.files import write_atomically

FORMAT = 1  # of what is remembered
FEWEST = 1_000_000  # documents; fewer are compared as soon as such a file is found

Contents = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Twins:
    """How many documents of one corpus are in another, and the first such pair: the number of each document."""

    number: int
    document: int = 0
    other: int = 0


def repeated(contents: Contents) -> npt.NDArray[np.bool_]:
    """Which documents are equal to one before them, bool [N]."""
    ordered = np.sort(contents)  # np.unique of so many is slow
    several = distinct(ordered[1:][ordered[1:] == ordered[:-1]])
    found = _among(contents, several)
    places = np.flatnonzero(found)
    found[places[np.unique(contents[places], return_index=True)[1]]] = False
    return found


def count_duplicates(corpus: Corpus, folder: Path) -> int:
    """How many documents of a corpus are equal to one before them. Remembered beside the folder, if they are many."""

    def count() -> list[int]:
        return [len(corpus.contents) - len(distinct(np.sort(corpus.contents)))]

    [number] = _remembered(folder, [corpus], count)
    return number


def find_twins(corpus: Corpus, other: Corpus, folder: Path) -> Twins:
    """Which documents of a corpus are in another one too. Remembered beside that one's folder, if they are many."""

    def find() -> list[int]:
        both = other.contents[_among(other.contents, distinct(np.sort(corpus.contents)))]
        places = np.flatnonzero(_among(corpus.contents, distinct(np.sort(both))))
        if not len(places):
            return [0, 0, 0]
        first = int(places[0])
        twin = int(np.flatnonzero(other.contents == corpus.contents[first])[0])
        return [len(places), first, twin]

    return Twins(*_remembered(folder, [other, corpus], find))


def _among(contents: Contents, some: Contents) -> npt.NDArray[np.bool_]:
    """Which of them are among `some`, uint64 [M], rising; bool [N]."""
    if not len(some):
        return np.zeros(len(contents), bool)
    places = np.minimum(np.searchsorted(some, contents), len(some) - 1)
    found: npt.NDArray[np.bool_] = some[places] == contents
    return found


def _remembered(folder: Path, corpora: Sequence[Corpus], compute: Callable[[], list[int]]) -> list[int]:
    if sum(len(corpus) for corpus in corpora) < FEWEST:
        return compute()
    known = xxhash.xxh3_128(repr(FORMAT).encode())
    for corpus in corpora:
        known.update(np.ascontiguousarray(corpus.contents).data)
        known.update(b"/")
    path = folder.with_name(f"{folder.name}.twins-{known.hexdigest()[:16]}")
    with suppress(OSError, ValueError):
        return [int(number) for number in json.loads(unsealed(path.read_text(encoding="utf-8")))]
    found = compute()
    with suppress(OSError):  # the folder is somebody else's, or full
        write_atomically(path, sealed(json.dumps(found)))
    return found


def tell_duplicates(name: str, corpus: Corpus, folder: Path) -> str | None:
    """What is to be said of duplicates in the data `name`; None: there are none."""
    if not (number := count_duplicates(corpus, folder)):
        return None
    return f"data.{name}: {number:,} of {len(corpus.contents):,} documents are duplicates of others (data.duplicates)"


def tell_twins(name: str, held: Corpus, train: Corpus, folder: Path) -> str | None:
    """A warning of held-out documents, of the data `name`, that the training data in `folder` have too; None: none."""
    twins = find_twins(held, train, folder)
    if not twins.number:
        return None
    pair = f"{held.place(twins.document)} is {train.place(twins.other)}"
    return (
        f"warning: data.{name}: {twins.number:,} of {len(held.contents):,} documents are in the training data too, so "
        f"scores on them say little; the first: {pair}"
    )
