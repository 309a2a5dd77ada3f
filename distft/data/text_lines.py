"""Lines of text files: opened, unpacked, and decoded by their encoding or their byte-order mark."""

from __future__ import annotations

import codecs
import gzip
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path

from distft.data.records import Broken
from distft.errors import UserError, first_line
from distft.recipe.sources import COMPRESSED

_CHUNK = 1 << 20  # bytes
_MARKS = {  # the longer one first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    b"\x84\x31\x95\x33": "gb18030",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


@dataclass(frozen=True)
class Stretch:
    """Lines of a file: its bytes [begin, end), the number of the first line, from 1, and how many they are (None: not
    counted)."""

    begin: int = 0
    end: int = sys.maxsize
    first: int = 1
    count: int | None = None

    @property
    def last(self) -> int | None:
        """The number of the last line."""
        return None if self.count is None else self.first + self.count - 1


WHOLE = Stretch()


def is_compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    kind = path.suffix.lower()
    try:
        with gzip.open(path) if kind == ".gz" else _zstd(path) if kind == ".zst" else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _incomplete(path, "gzip", error) from error
    except OSError as error:
        if kind == ".zst" and error.errno is None:  # what pyarrow finds in the bytes
            raise _incomplete(path, "zstd", error) from error
        reason = os.strerror(error.errno) if error.errno else error.strerror
        raise UserError(f"cannot read data file {path}: {reason}") from error


def _zstd(path: Path) -> BufferedIOBase:
    import pyarrow  # type: ignore[import-untyped]

    return BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"), _CHUNK)


def _incomplete(path: Path, kind: str, error: Exception) -> UserError:
    return UserError(
        f"data file {path} is not a complete {kind} file ({first_line(error)}); download or compress it again"
    )


def canonical(encoding: str | None) -> str | None:
    """One name for one encoding; None for UTF-8, which is what a file without a mark is read as."""
    name = None if encoding is None else codecs.lookup(encoding).name
    return None if name in ("utf-8", "utf-8-sig") else name


def lines(path: Path, encoding: str | None = None, stretch: Stretch = WHOLE) -> Iterator[str | Broken]:
    """Decoded lines with their ends, without a byte-order mark. Splits at \\n only: text may hold U+2028.

    Args:
        encoding: what `canonical` returns; None: as the byte-order mark says, or UTF-8.
        stretch: one of `stretches`.

    Raises:
        UserError: the mark says otherwise, or the file is UTF-16 and has none.
    """
    with opened(path) as file:
        mark, known = _begun(file, path, encoding)
        at = len(file.read(len(mark)))
        if stretch.begin:
            at = file.seek(stretch.begin)
        for number, line in enumerate(_split(file, "\n".encode(known)), stretch.first):
            yield _decoded(line, path, number, known)
            at += len(line)
            if at >= stretch.end:
                return


def stretches(path: Path, encoding: str | None, size: int) -> list[Stretch]:
    """Cuts a file behind the line in which every `size` bytes end. Nothing but the file and `size` matters.

    Returns one at least, and WHOLE alone where lines cannot be told by bytes.
    """
    with opened(path) as file:
        if is_compressed(path) or "\n".encode(_begun(file, path, encoding)[1]) != b"\n":
            return [WHOLE]
        found: list[Stretch] = []
        begin, first = 0, 1
        while True:
            length, count, last = 0, 0, b""
            while length < size and (chunk := file.read(min(_CHUNK, size - length))):
                length, count, last = length + len(chunk), count + chunk.count(b"\n"), chunk[-1:]
            rest = file.readline()
            if not length:
                return found or [WHOLE]
            end, count = begin + length + len(rest), count + (rest != b"" or last != b"\n")
            found.append(Stretch(begin, end, first, count))
            begin, first = end, first + count


def _begun(file: BufferedIOBase, path: Path, encoding: str | None) -> tuple[bytes, str]:
    """The byte-order mark that a file begins with, which is not read yet, and its encoding."""
    start = file.peek(4)[:4] if hasattr(file, "peek") else b""
    mark = next((one for one in _MARKS if start.startswith(one)), b"")
    return mark, _encoding_of(path, start, mark, encoding)


def _encoding_of(path: Path, start: bytes, mark: bytes, encoding: str | None) -> str:
    found = _MARKS.get(mark)
    if encoding is None:
        if found is None and len(start) == 4 and start.count(0) == 2:  # two ASCII characters, as tables and JSON begin
            raise UserError(
                f"data file {path} is not UTF-8: it looks like UTF-16 without a byte-order mark; set data.encoding, "
                "such as utf-16-le"
            )
        return found or "utf-8"
    if found is not None and not found.startswith(encoding):
        raise UserError(
            f"data file {path} begins with the byte-order mark of {found}, but data.encoding is {encoding}; "
            "leave data.encoding out"
        )
    return found or (f"{encoding}-le" if encoding in ("utf-16", "utf-32") else encoding)


def _split(file: BufferedIOBase, end: bytes) -> Iterator[bytes]:
    """The lines of a file whose lines end with these bytes, which have the width of a character."""
    if end == b"\n":
        yield from file
        return
    rest = b""
    while chunk := file.read(_CHUNK):
        rest, begin, at = rest + chunk, 0, 0
        while (at := rest.find(end, at)) >= 0:
            if (at - begin) % len(end):  # the end of one character and the beginning of the next
                at += 1
                continue
            at += len(end)
            yield rest[begin:at]
            begin = at
        rest = rest[begin:]
    if rest:
        yield rest


def _decoded(line: bytes, path: Path, number: int, encoding: str) -> str | Broken:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            why = f"is not UTF-8 ({error}); name the file's encoding in data.encoding, or convert it to UTF-8"
        else:
            why = f"is not {encoding} ({error}); correct data.encoding, or convert the file to UTF-8"
        return Broken(f"{path}:{number}", why)


def bare(line: str) -> str:
    """A line without its end."""
    return line.removesuffix("\n").removesuffix("\r")
