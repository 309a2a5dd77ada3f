"""Lines of text files: opened, unpacked, and decoded by their encoding or their byte-order mark."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

from distft.data.records import Broken
from distft.errors import UserError, first_line

_CHUNK = 1 << 20  # bytes
_MARKS = {  # the longer one first: UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    b"\x84\x31\x95\x33": "gb18030",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


@contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    try:
        with gzip.open(path) if is_gzip(path) else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"data file {path} is not a complete gzip file ({first_line(error)}); download or compress it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read data file {path}: {error.strerror}") from error


def canonical(encoding: str | None) -> str | None:
    """One name for one encoding; None for UTF-8, which is what a file without a mark is read as."""
    name = None if encoding is None else codecs.lookup(encoding).name
    return None if name in ("utf-8", "utf-8-sig") else name


def lines(path: Path, encoding: str | None = None) -> Iterator[str | Broken]:
    """Decoded lines with their ends, without a byte-order mark. Splits at \\n only: text may hold U+2028.

    Args:
        encoding: what `canonical` returns; None: as the byte-order mark says, or UTF-8.

    Raises:
        UserError: the mark says otherwise, or the file is UTF-16 and has none.
    """
    with opened(path) as file:
        start = file.peek(4)[:4] if hasattr(file, "peek") else b""
        mark = next((one for one in _MARKS if start.startswith(one)), b"")
        known = _encoding_of(path, start, mark, encoding)
        file.read(len(mark))
        for number, line in enumerate(_split(file, "\n".encode(known)), 1):
            yield _decoded(line, path, number, known)


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
