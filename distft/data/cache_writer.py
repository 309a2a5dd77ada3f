"""Writes the files of a cache folder, and continues where a writer before it was stopped or killed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from distft.data import bad_records
from distft.data.bad_records import Bad
from distft.data.records import Encoded
from distft.run.files import write_atomically

NUMBERS = {"sizes": "int32", "targets": "int32", "records": "int64"}  # one a document
PROGRESS = "progress.json"
_CHUNK = 1 << 20  # bytes
_BAD = "bad records"  # the file that lists them, which is there only if there are any


@dataclass
class Progress:
    """What has been written of a cache folder, as far as it is on the disk. `lengths`: of the files, in bytes."""

    records: int = 0
    documents: int = 0
    size: int = 0
    targets: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)  # values of each column
    lengths: dict[str, int] = field(default_factory=dict)
    parts: int = 0  # appended

    @classmethod
    def read(cls, folder: Path) -> Progress | None:
        """What a writer has kept there; None if there is nothing that can be read."""
        try:
            return cls(**json.loads((folder / PROGRESS).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
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
        self._done = self._continued() or self._begun()
        self._notes = Counter(self._done.notes)
        self._files: dict[str, BinaryIO] = {}
        for name, path in self._paths.items():
            file = self._stack.enter_context(path.open("r+b"))
            file.truncate(self._done.lengths.get(name, 0))
            file.seek(0, os.SEEK_END)
            self._files[name] = file

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
            whole = all(path.stat().st_size >= found.lengths[name] for name, path in self._paths.items())
        except (OSError, KeyError):
            return None
        return found if whole else None

    def _begun(self) -> Progress:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for path in self._paths.values():
            path.touch()
        return Progress(ends=dict.fromkeys(self._columns, 0))

    def add(self, encoded: Encoded) -> None:
        """Add what became of one record."""
        done = self._done
        self._notes.update(encoded.notes)
        done.warnings = {**encoded.warnings, **done.warnings}
        for document in encoded.documents:
            numbers = {"sizes": document.size, "targets": document.targets, "records": done.records}
            for name, number in numbers.items():
                self._put(name, np.array([number], NUMBERS[name]))
            for name, dtype in self._columns.items():
                values = np.ascontiguousarray(document[name], dtype)
                self._put(f"{name}.offsets", np.array([done.ends[name]], "int64"))
                self._put(f"{name}.column", values)
                done.ends[name] += len(values)
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
                self._copy(part / path.name, more.lengths[name], name, shifts.get(name, 0))
        for bad in bad_records.listed(part / bad_records.FILE):
            self._files[_BAD].write(replace(bad, record=done.records + bad.record).line().encode())
        self._notes.update(more.notes)
        done.warnings = {**more.warnings, **done.warnings}
        done.ends = {name: end + more.ends[name] for name, end in done.ends.items()}
        for name in ("records", "documents", "size", "targets"):
            setattr(done, name, getattr(done, name) + getattr(more, name))
        done.parts += 1

    def _copy(self, path: Path, length: int, name: str, shift: int) -> None:
        """`length` bytes of a file; numbers (int64) grow by `shift`."""
        with path.open("rb") as file:
            while length and (chunk := file.read(min(length, _CHUNK))):
                length -= len(chunk)
                self._files[name].write((np.frombuffer(chunk, "int64") + shift).tobytes() if shift else chunk)
        if length:
            raise OSError(errno.EIO, "the file is shorter than it was", str(path))

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        self._files[name].write(values.tobytes())

    def keep(self) -> None:
        """Have all that was added on the disk, so that another writer can go on from here, or append it."""
        self._sync_all()
        self._done.notes = dict(self._notes)
        self._done.lengths = {name: file.tell() for name, file in self._files.items()}
        write_atomically(self.folder / PROGRESS, json.dumps(asdict(self._done)))

    def finish(self) -> Progress:
        """Complete the files, and leave nothing else beside them."""
        for name, end in self._done.ends.items():
            self._put(f"{name}.offsets", np.array([end], "int64"))
        self._sync_all()
        if self._files[_BAD].tell() == 0:
            self._paths[_BAD].unlink()
        (self.folder / PROGRESS).unlink(missing_ok=True)
        self._done.notes = dict(self._notes)
        return self._done

    def _sync_all(self) -> None:
        for file in self._files.values():
            file.flush()
            sync(file.fileno())


def sync(descriptor: int) -> None:
    # Without it a machine that dies after the rename may leave a whole folder of empty files.
    os.fsync(descriptor)
