"""The blocks of a data file: pieces of 64 records, found in one pass over the file.

Of a file of lines a block is its bytes from behind the block before to the end of the line with its last record. Of a
Parquet file it is a slice of the table, as a stream of Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from distft.data import filters, readers, sources, text_lines
from distft.data.records import Broken, Record
from distft.data.sources import Source
from distft.errors import UserError
from distft.recipe.sources import Filter

BLOCK = 64  # records
_CHUNK = 4 << 20  # bytes
_END = ord("\n")

Kind = Literal["objects", "texts", "every line", "table"]
_Bools = npt.NDArray[np.bool_]
_Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """A block. `begin`: its first byte in the text of the file; `first`: its first line, from 1, or row, from 0;
    `records`: that are taken."""

    content: bytes
    begin: int
    first: int
    records: int


@dataclass(frozen=True)
class Form:
    """How the blocks of a file are told and read.

    Attributes:
        mark: bytes of the byte-order mark.
        encoding: of lines.
        packed: the text of the file cannot be sought.
        filter: which records are taken; the others are in the blocks, and not given.
    """

    path: Path
    kind: Kind
    mark: int = 0
    encoding: str = ""
    packed: bool = False
    filter: Filter = field(default_factory=dict)

    def pieces(self) -> Iterator[Piece]:
        """All blocks, in order. Raises UserError for a file that cannot be read."""
        for piece in self._found():
            taken = sum(1 for _ in self.records(piece.content, piece.first)) if self.filter else piece.records
            yield replace(piece, records=taken)

    def _found(self) -> Iterator[Piece]:
        if self.kind == "table":
            yield from _slices(self.path)
            return
        with text_lines.opened(self.path) as file:
            file.read(self.mark)
            yield from _cut(file, self.mark, self._filled)

    def records(self, content: bytes, first: int) -> Iterator[Record | Broken]:
        """The records of a block, as `sources.read_leniently` has them."""
        rows = self._every(content, first)
        return filters.taken(rows, self.filter) if self.filter else rows

    def _every(self, content: bytes, first: int) -> Iterator[Record | Broken]:
        if self.kind == "table":
            return _rows(self.path, content, first)
        lines = text_lines.decoded(content, self.path, first, self.encoding)
        if self.kind == "objects":
            return readers.objects(self.path, lines, first)
        return readers.texts(self.path, lines, first, keep_empty=self.kind == "every line")

    def _filled(self, content: bytes, begins: _Int64s, ends: _Int64s) -> _Bools:
        """Which of some lines are records: bool [lines]."""
        if self.kind == "every line":
            return np.ones(len(begins), bool)
        if self.encoding == "utf-8":  # a line that begins with a sign of ASCII holds one
            start = np.frombuffer(content, np.uint8)[begins]
            found = (start > ord(" ")) & (start < 127)
        else:
            found = np.zeros(len(begins), bool)
        for line in np.flatnonzero(~found):
            try:
                found[line] = bool(content[begins[line] : ends[line]].decode(self.encoding).strip())
            except UnicodeDecodeError:  # a record that is broken
                found[line] = True
        return found


def form_of(source: Source) -> Form:
    """Of one file. Raises UserError for a source that cannot be read by blocks."""
    if (found := sources.file_of(source)) is None:
        raise UserError(f"data.streaming reads files, and {source.name} is none; {_REMEDY}")
    path, reader = found
    kind = _kind(reader)
    if kind is None:
        raise UserError(f"data.streaming cannot read {path} record by record; {_REMEDY}")
    if kind == "table":
        return Form(path, kind, packed=True, filter=source.filter)
    mark, encoding = text_lines.beginning(path, reader.keywords.get("encoding"))
    if "\n".encode(encoding) != b"\n":
        raise UserError(f"data.streaming cannot read {path}, whose encoding is {encoding}; convert it to UTF-8")
    return Form(path, kind, mark, encoding, text_lines.is_compressed(path), source.filter)


_REMEDY = "use .jsonl, .txt or .parquet, or leave data.streaming out"


def _kind(reader: partial[Any]) -> Kind | None:
    if reader.func is readers.text:
        return "every line" if reader.keywords.get("keep_empty") else "texts"
    if reader.func is readers.jsonl:
        return "objects"
    return "table" if reader.func is readers.parquet else None


def _cut(file: BufferedIOBase, begin: int, filled: Callable[[bytes, _Int64s, _Int64s], _Bools]) -> Iterator[Piece]:
    """The blocks of lines that are still to be read of a file, the first one at byte `begin`."""
    content, first = b"", 1
    while True:
        chunk = file.read(_CHUNK)
        content += chunk
        ends = np.flatnonzero(np.frombuffer(content, np.uint8) == _END) + 1
        if not chunk and content and not content.endswith(b"\n"):
            ends = np.append(ends, len(content))
        begins = np.concatenate([[0], ends])[: len(ends)]
        records = np.cumsum(filled(content, begins, ends))  # up to each line, and with it
        count = int(records[-1]) if len(records) else 0
        last = -(-count // BLOCK) if not chunk else count // BLOCK
        lines = np.searchsorted(records, np.minimum(np.arange(1, last + 1) * BLOCK, count)) + 1
        done, line = 0, 0
        for number, until in enumerate(lines.tolist(), 1):
            end = int(ends[until - 1])
            yield Piece(content[done:end], begin + done, first + line, min(BLOCK, count - BLOCK * (number - 1)))
            done, line = end, until
        content, begin, first = content[done:], begin + done, first + line
        if not chunk:
            return


def _slices(path: Path) -> Iterator[Piece]:
    import pyarrow  # type: ignore[import-untyped]

    first, rest = 0, None
    with readers.tables_of(path) as (_, batches):
        for batch in batches:
            table = pyarrow.Table.from_batches([batch])
            rest = table if rest is None else pyarrow.concat_tables([rest, table])
            while len(rest) >= BLOCK:
                yield _slice(rest.slice(0, BLOCK), first)
                rest, first = rest.slice(BLOCK), first + BLOCK
        if rest is not None and len(rest):
            yield _slice(rest, first)


def _slice(table: Any, first: int) -> Piece:
    import pyarrow

    content = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(content, table.schema) as writer:
        writer.write_table(table)
    return Piece(content.getvalue().to_pybytes(), 0, first, len(table))


def _rows(path: Path, content: bytes, first: int) -> Iterator[Record]:
    import pyarrow

    table = pyarrow.ipc.open_stream(content).read_all()
    return readers.rows_in(path, table.schema, table.to_batches(), first)
