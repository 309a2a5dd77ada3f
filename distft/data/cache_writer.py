"""Writes the files of a cache folder, and continues where a writer before it was stopped or killed."""

from __future__ import annotations

import json
import shutil
import struct
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import xxhash

from distft.data import bad_records
from distft.data.bad_records import Bad
from distft.data.checksums import SummedFile, Sums, sealed, unsealed
from distft.data.records import Encoded, content_of
from distft.errors import UserError
from distft.run.files import write_atomically

NUMBERS = {"sizes": "int32", "targets": "int32", "records": "int64", "contents": "uint64"}  # one a document
PROGRESS = "progress.json"
_CODES = {"int32": "<i", "int64": "<q", "uint64": "<Q"}  # of `struct`, which is faster than numpy for one number
_BAD = "bad records"  # the file that lists them, which is there only if there are any


@dataclass
class Progress:
    """What has been written of a cache folder, as far as it is on the disk."""

    records: int = 0
    documents: int = 0
    size: int = 0
    targets: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)  # values of each column
    sums: dict[str, Sums] = field(default_factory=dict)  # of each file
    parts: int = 0  # appended

    @classmethod
    def read(cls, folder: Path) -> Progress | None:
        """What a writer has kept there; None if there is nothing that can be read."""
        try:
            known = json.loads(unsealed((folder / PROGRESS).read_text(encoding="utf-8")))
            return cls(**{**known, "sums": {name: Sums(**one) for name, one in known["sums"].items()}})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None


class CacheWriter:
    """Appends documents to files and counts. Memory does not grow with the data.

    Two writers in one folder (one of them was given up and lives on) do no harm: both write the same bytes to the same
    places.

    Args:
        folder: absent, or what an earlier writer of the same documents left.
    """

    def __init__(self, folder: Path, columns: Mapping[str, str]) -> None:
        self.folder, self._columns = folder, dict(columns)
        arrays = [*NUMBERS, *(f"{c}.{part}" for c in columns for part in ("offsets", "column"))]
        self._paths = {name: folder / f"{name}.bin" for name in arrays} | {_BAD: folder / bad_records.FILE}
        self._stack = ExitStack()
        self._files: dict[str, SummedFile] = {}
        self._done = self._continued() or self._begun()
        self._notes = Counter(self._done.notes)

    @property
    def records(self) -> int:
        """How many were added, by this writer and by those before it."""
        return self._done.records

    @property
    def parts(self) -> int:
        """How many were appended, by this writer and by those before it."""
        return self._done.parts

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stack.close()

    def _continued(self) -> Progress | None:
        """What is there; None where that is not enough to go on from."""
        found = Progress.read(self.folder)
        if found is None or found.ends.keys() != self._columns.keys():
            return None
        try:
            self._open(found)
        except (OSError, KeyError, ValueError):
            self._stack.close()
            return None
        return found

    def _begun(self) -> Progress:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for path in self._paths.values():
            path.touch()
        done = Progress(ends=dict.fromkeys(self._columns, 0), sums=dict.fromkeys(self._paths, Sums(0, [])))
        self._open(done)
        return done

    def _open(self, done: Progress) -> None:
        for name, path in self._paths.items():
            self._files[name] = SummedFile(path, done.sums[name])
            self._stack.callback(self._files[name].close)

    def add(self, encoded: Encoded) -> None:
        """Add what became of one record."""
        done = self._done
        self._notes.update(encoded.notes)
        done.warnings = {**encoded.warnings, **done.warnings}
        for document in encoded.documents:
            columns = {name: np.ascontiguousarray(document[name], dtype) for name, dtype in self._columns.items()}
            for name, values in columns.items():
                self._put_number(f"{name}.offsets", "int64", done.ends[name])
                self._files[f"{name}.column"].write(values.tobytes())
                done.ends[name] += len(values)
            numbers = {"sizes": document.size, "targets": document.targets, "records": done.records}
            for name, number in {**numbers, "contents": content_of(columns)}.items():
                self._put_number(name, NUMBERS[name], number)
            done.documents += 1
            done.size += document.size
            done.targets += document.targets
        done.records += 1

    def leave_out(self, where: str, error: str) -> None:
        """Count one record and list it as bad."""
        self._files[_BAD].write(Bad(self._done.records, where, error).line().encode())
        self._done.records += 1

    def append(self, part: Path) -> None:
        """Add what a writer has kept in another folder, as if its records had been added here."""
        done, more = self._done, Progress.read(part)
        assert more is not None
        shifts = {"records": done.records} | {f"{name}.offsets": end for name, end in done.ends.items()}
        for name, path in self._paths.items():
            if name != _BAD:
                self._copy(part / path.name, more.sums[name], name, shifts.get(name, 0))
        for bad in bad_records.listed(part / bad_records.FILE):
            self._files[_BAD].write(replace(bad, record=done.records + bad.record).line().encode())
        self._notes.update(more.notes)
        done.warnings = {**more.warnings, **done.warnings}
        done.ends = {name: end + more.ends[name] for name, end in done.ends.items()}
        for name in ("records", "documents", "size", "targets"):
            setattr(done, name, getattr(done, name) + getattr(more, name))
        done.parts += 1

    def _copy(self, path: Path, sums: Sums, name: str, shift: int) -> None:
        """What a file has by its checksums; numbers (int64) grow by `shift`."""
        with path.open("rb") as file:
            for stretch, checksum in enumerate(sums.each):
                chunk = file.read(sums.stretch_bytes(stretch))
                if xxhash.xxh3_64_intdigest(chunk) != checksum:
                    raise UserError(f"{path} is not what was written a moment ago; run the same command again")
                self._files[name].write((np.frombuffer(chunk, "int64") + shift).tobytes() if shift else chunk)

    def _put_number(self, name: str, dtype: str, number: int) -> None:
        self._files[name].write(struct.pack(_CODES[dtype], number))

    def keep(self) -> None:
        """Have all that was added on the disk, so that another writer can go on from here, or append it."""
        self._sync()
        write_atomically(self.folder / PROGRESS, sealed(json.dumps(asdict(self._done))))

    def finish(self) -> Progress:
        """Complete the files, and leave nothing else beside them."""
        for name, end in self._done.ends.items():
            self._put_number(f"{name}.offsets", "int64", end)
        self._sync()
        for left in (self.folder / PROGRESS, *self.folder.glob(f".{PROGRESS}.*")):  # a kill came while it was written
            left.unlink(missing_ok=True)
        if self._done.sums[_BAD].bytes == 0:
            self._paths[_BAD].unlink()
            del self._done.sums[_BAD]
        self._done.sums = {self._paths[name].name: sums for name, sums in self._done.sums.items()}
        return self._done

    def _sync(self) -> None:
        for file in self._files.values():
            file.sync()
        self._done.notes = dict(self._notes)
        self._done.sums = {name: file.sums for name, file in self._files.items()}
