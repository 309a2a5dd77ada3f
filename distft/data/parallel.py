"""Parallel files of lines: line i of each belongs to record i."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

from distft.data import text_lines
from distft.data.places import missing
from distft.data.readers import RecordStream
from distft.data.records import Broken, Record
from distft.errors import UserError


def files(spec: Mapping[str, str]) -> dict[str, Path]:
    found = {column: Path(file).expanduser() for column, file in spec.items()}
    if not found:
        raise UserError("parallel data lists no files; write {column: file}")
    for column, path in found.items():
        if path.is_dir():
            raise UserError(f"data file {path} (column {column}) is a folder; parallel files are files of lines")
        if not path.exists():
            raise missing(spec[column])
    return found


def read(files: Mapping[str, Path], encoding: str | None) -> RecordStream:
    """Line i of each file makes record i, also where it is empty."""
    rest = {column: text_lines.lines(path, encoding) for column, path in files.items()}
    first = next(iter(files.values()))
    for number in count(1):
        row = {column: line for column, lines in rest.items() if (line := next(lines, None)) is not None}
        if not row:
            return
        if len(row) < len(files):
            counts = {files[c]: number - (c not in row) + sum(1 for _ in lines) for c, lines in rest.items()}
            told = " but ".join(f"{path} has {lines} lines" for path, lines in counts.items())
            raise UserError(f"parallel files must have the same number of lines, but {told}")
        broken = next((line for line in row.values() if isinstance(line, Broken)), None)
        fields = {column: text_lines.bare(line) for column, line in row.items() if isinstance(line, str)}
        yield broken or Record(f"{first}:{number}", fields)
