"""Bad records, which cannot be read or used: refused, or left out and listed (`data.bad_records`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from distft.data import sources
from distft.data.records import Record
from distft.data.sources import Source
from distft.errors import UserError
from distft.run.files import write_atomically

FILE = "bad-records.jsonl"
FIRST = 3  # that a refusal names

T = TypeVar("T")


@dataclass(frozen=True)
class Bad:
    """A record that is left out. `record`: its index in the source; `error`: a sentence that says where, too."""

    record: int
    where: str
    error: str

    def __str__(self) -> str:
        return self.error

    def line(self, **about: str) -> str:
        """A line of JSON, with what else is to be known about it."""
        return json.dumps({**about, **asdict(self)}) + "\n"


class BadRecords(UserError):
    """More records are bad than the source allows. `bad`: all of them."""

    def __init__(self, text: str, bad: Sequence[Bad]) -> None:
        super().__init__(text)
        self.bad = bad


def check(source: Source, bad: Sequence[Bad], records: int) -> None:
    """Raises BadRecords if more of the `records` of a source are bad than it allows."""
    if not bad:
        return
    if source.bad_budget is None:
        raise BadRecords(bad[0].error, bad)
    if len(bad) / records > source.bad_budget:
        first = "; ".join(one.error for one in bad[:FIRST])
        raise BadRecords(
            f"{len(bad):,} of the {records:,} records of {source.name} are bad, more than data.bad_budget "
            f"{source.bad_budget:g} allows; correct them, or raise it; the first: {first}",
            bad,
        )


def usable(source: Source, use: Callable[[Record], T]) -> Iterator[tuple[Record, T]]:
    """Records with what `use` makes of them. Where the source allows for bad ones, those that cannot be read and those
    that `use` refuses are passed over; else they raise UserError."""
    for row in sources.read_leniently(source):
        try:
            record = sources.whole(row)
            made = use(record)
        except UserError:
            if source.bad_budget is None:
                raise
            continue
        yield record, made


def listed(path: Path, then: str = "", now: str = "") -> list[Bad]:
    """What a list of bad records holds; nothing if there is none.

    Args:
        then: what the source was called when the list was written.
        now: what it is called now.
    """
    if not path.exists():
        return []
    read = [Bad(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    before, after = (name.split(" + ")[0] for name in (then, now))  # of parallel files the first one is named

    def renamed(text: str) -> str:
        return after + text.removeprefix(before) if text.startswith(before) else text

    return [replace(one, where=renamed(one.where), error=renamed(one.error)) for one in read]


def note(path: Path, name: str, bad: Sequence[Bad]) -> None:
    """Have a list hold these of the data set `name`, beside those of others. None at all: there is no file."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    others = [line for line in before.splitlines(keepends=True) if not line.startswith(_beginning(name))]
    now = "".join([*others, *(one.line(data=name) for one in bad)])
    if not now:
        path.unlink(missing_ok=True)
    elif now != before:
        write_atomically(path, now)


def noted(path: Path, name: str) -> list[Bad]:
    """Those of the data set `name` in a list that `note` has written."""
    if not path.exists():
        return []
    own = [line for line in path.read_text(encoding="utf-8").split("\n") if line.startswith(_beginning(name))]
    return [Bad(**{key: value for key, value in json.loads(line).items() if key != "data"}) for line in own]


def _beginning(name: str) -> str:
    """How the lines of a data set begin."""
    return f"{json.dumps({'data': name})[:-1]}, "


@contextmanager
def listing(path: Path, name: str, source: Source) -> Iterator[list[Bad]]:
    """What is put into the list that it gives is noted at the end, and where there are too many, all of them, which the
    error then says."""
    bad: list[Bad] = []
    try:
        yield bad
    except BadRecords as error:
        if source.bad_budget is None:
            raise
        note(path, name, error.bad)
        raise UserError(f"{error}; all of them: {path}") from None
    note(path, name, bad)
