"""The token cache: tokenized documents, written once under a digest of their inputs, then memory-mapped."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distft.data import sources
from distft.data.records import Document, Encoded, Encoder
from distft.data.sources import Source
from distft.errors import UserError

FORMAT = 2  # of the folder; raise it when its files change

_OF_DOCUMENTS = {"sizes": "int32", "targets": "int32", "records": "int64"}  # one number a document
_META = "meta.json"
_DAY = 86400.0  # seconds
_POLL = 0.5  # seconds between two tries for the lock
_EVERY = 50  # records between two calls of check_stop and progress


@dataclass(frozen=True)
class Meta:
    """What is in a cache folder and what was left out."""

    source: str  # as the recipe names it
    columns: dict[str, str]  # dtypes by name
    records: int = 0  # read
    documents: int = 0
    size: int = 0  # of all documents
    targets: int = 0  # to predict
    notes: dict[str, int] = field(default_factory=dict)  # what was done to how many


@dataclass(frozen=True, eq=False)
class Corpus:
    """N documents, mapped from disk. In memory: `sizes`, int32 [N]."""

    meta: Meta
    sizes: npt.NDArray[np.int32]
    _numbers: Mapping[str, npt.NDArray[Any]]
    _offsets: Mapping[str, npt.NDArray[np.int64]]
    _values: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def open(cls, path: Path) -> Corpus:
        """Opens a folder made by `build`. Raises UserError if it is missing or damaged."""
        try:
            meta = Meta(**json.loads((path / _META).read_text()))
            numbers = {name: _mapped(path / f"{name}.bin", dtype) for name, dtype in _OF_DOCUMENTS.items()}
            offsets = {name: _mapped(path / f"{name}.offsets.bin", "int64") for name in meta.columns}
            values = {name: _mapped(path / f"{name}.column.bin", dtype) for name, dtype in meta.columns.items()}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"token cache {path} cannot be opened ({error}); delete that folder") from error
        whole = all(len(array) == meta.documents for array in numbers.values())
        whole &= all(len(array) == meta.documents + 1 for array in offsets.values())
        if not whole or any(len(values[name]) != offsets[name][-1] for name in meta.columns):
            raise UserError(f"token cache {path} is damaged (a file has the wrong size); delete that folder")
        if any(its[0] != 0 or (np.diff(its) < 0).any() for its in offsets.values()):
            raise UserError(f"token cache {path} is damaged (its documents overlap); delete that folder")
        return cls(meta, np.array(numbers["sizes"]), numbers, offsets, values)

    def __len__(self) -> int:
        return len(self.sizes)

    def largest_token(self) -> int:
        """Of all documents. Reads all of them."""
        return max(int(its.max(initial=0)) for its in self._values.values() if its.dtype == np.int32)

    def document(self, i: int) -> Document:
        """Document i, 0 <= i < len (else IndexError). Its arrays are read-only views of the mapped files."""
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        columns = {}
        for name, values in self._values.items():
            offsets = self._offsets[name]
            columns[name] = np.asarray(values[int(offsets[i]) : int(offsets[i + 1])])
        numbers = {name: int(array[i]) for name, array in self._numbers.items()}
        return Document(columns, numbers["sizes"], numbers["targets"], numbers["records"])


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    if path.stat().st_size == 0:  # a column that is empty in all documents; there is nothing to map
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def build_cache(
    source: Source,
    encoder: Encoder,
    cache: str | None,
    check_stop: Callable[[], None],
    progress: Callable[[int], None],
) -> Path:
    """The cache folder of a source as an encoder sees it, written first unless it is there already.

    `check_stop` raises to give up, and nothing half-written stays; `progress` takes the number of records done.
    Both are called every few records, `check_stop` also while another job writes the same folder. Raises UserError
    for bad data, for data without anything to learn, and where the cache cannot be written.
    """
    root = root_of(cache)
    key = _key(source, encoder, root)
    folder = root / key
    if folder.exists():
        return folder
    with _writable(root):
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        with _locked(root / f"{folder.name}.lock", check_stop):
            if not folder.exists():
                _write(folder, source, encoder, check_stop, progress, lambda: _key(source, encoder, root) == key)
    return folder


def root_of(cache: str | None) -> Path:
    """The folder that holds the cache folders."""
    found = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "distft"
    return found.expanduser() / "tokens"


def _key(source: Source, encoder: Encoder, root: Path) -> str:
    parts = [FORMAT, sources.fingerprint(source, memory=root), encoder.digest, sorted(encoder.columns.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@contextmanager
def _writable(root: Path) -> Iterator[None]:
    """Says in one sentence that the cache folder is full, or not ours to write."""
    try:
        yield
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
        ):
            raise
        raise UserError(
            f"cannot write the token cache in {root}: {error.strerror}; free some space, or change data.cache"
        ) from error


@contextmanager
def _locked(path: Path, check_stop: Callable[[], None]) -> Iterator[None]:
    """Holds the lock that keeps two jobs from doing the same work. An economy only: the rename is what is safe."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                check_stop()
                time.sleep(_POLL)
            except OSError:  # a file system without locks
                break
        yield


def _remove_stale(root: Path) -> None:
    """Removes what writers that were killed have left: temporary folders in which nothing was written for a day."""
    for folder in root.glob("*.tmp-*"):
        try:
            newest = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
        except OSError:  # its writer is at work
            continue
        if newest < time.time() - _DAY:
            shutil.rmtree(folder, ignore_errors=True)


def _write(
    folder: Path,
    source: Source,
    encoder: Encoder,
    check_stop: Callable[[], None],
    progress: Callable[[int], None],
    unchanged: Callable[[], bool],
) -> None:
    """Writes beside `folder` and publishes by one rename, so that a folder by this name is always whole.

    Raises UserError as `build`, also where the data are not `unchanged` at the end: the name tells what they were.
    """
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        with _Writer(temporary, encoder.columns) as writer:
            for record in sources.read(source):
                if writer.records % _EVERY == 0:
                    check_stop()
                    progress(writer.records)
                writer.add(encoder.encode(record))
        progress(writer.records)
        meta = writer.meta(source.name)
        if meta.documents == 0:
            raise UserError(_why_empty(meta))
        if not unchanged():
            raise UserError(f"data {source.name} changed while being read; run the same command again")
        _dump(temporary / _META, json.dumps(asdict(meta), indent=1))
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        # Another job was first. What it made from the same bytes is the same.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _why_empty(meta: Meta) -> str:
    if meta.records == 0:
        return f"data {meta.source} has no records"
    why = "; ".join(f"{number:,} {note}" for note, number in meta.notes.items())
    return f"none of the {meta.records} records of {meta.source} can be used for training{why and ': '}{why}"


def _dump(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        _sync(file.fileno())


def _sync(descriptor: int) -> None:
    # Without it a machine that dies after the rename may leave a whole folder of empty files.
    os.fsync(descriptor)


class _Writer:
    """Appends documents to the files of a cache folder and counts. Memory does not grow with the data."""

    def __init__(self, folder: Path, columns: Mapping[str, str]) -> None:
        self.records = 0
        self._columns = dict(columns)
        self._documents = self._size = self._targets = 0
        self._notes: Counter[str] = Counter()
        self._ends = dict.fromkeys(columns, 0)
        names = [*_OF_DOCUMENTS, *(f"{c}.{part}" for c in columns for part in ("offsets", "column"))]
        self._stack = ExitStack()
        self._files = {name: self._stack.enter_context((folder / f"{name}.bin").open("wb")) for name in names}

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._stack:
            if kind is None:
                for name, end in self._ends.items():
                    self._put(f"{name}.offsets", np.array([end], "int64"))
                for file in self._files.values():
                    file.flush()
                    _sync(file.fileno())

    def add(self, encoded: Encoded) -> None:
        """Adds what became of one record."""
        self._notes.update(encoded.notes)
        for document in encoded.documents:
            numbers = {"sizes": document.size, "targets": document.targets, "records": self.records}
            for name, number in numbers.items():
                self._put(name, np.array([number], _OF_DOCUMENTS[name]))
            for name, dtype in self._columns.items():
                values = np.ascontiguousarray(document[name], dtype)
                self._put(f"{name}.offsets", np.array([self._ends[name]], "int64"))
                self._put(f"{name}.column", values)
                self._ends[name] += len(values)
            self._documents += 1
            self._size += document.size
            self._targets += document.targets
        self.records += 1

    def _put(self, name: str, values: npt.NDArray[Any]) -> None:
        self._files[name].write(values.tobytes())

    def meta(self, source: str) -> Meta:
        return Meta(source, self._columns, self.records, self._documents, self._size, self._targets, dict(self._notes))
