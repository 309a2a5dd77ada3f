"""The token cache: documents written once, found by what they were made from, and memory-mapped from then on."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from distft.config import Data
from distft.data import sources
from distft.data.templates import Template
from distft.data.types import Document
from distft.errors import UserError

FORMAT = 1  # of the folder; raise it when its files change

_DTYPES = {"tokens": np.int32, "targets": np.uint8, "offsets": np.int64, "target_counts": np.int32}
_META = "meta.json"
_DAY = 86400.0  # seconds
_POLL = 0.5  # seconds between two tries for the lock
_EVERY = 50  # records between two calls of check_stop and progress


@dataclass(frozen=True)
class Meta:
    """What is in a cache folder and what was left out. All counts but `source`."""

    source: str  # data.train or data.eval, as written in the recipe
    records: int = 0  # read
    documents: int = 0
    tokens: int = 0
    targets: int = 0  # tokens to predict
    split: int = 0  # records cut into several documents
    dropped_long: int = 0  # records left out for their length
    dropped_no_target: int = 0  # documents left out, having nothing to predict


@dataclass(frozen=True, eq=False)
class Corpus:
    """N documents, mapped from disk. In memory: `lengths` and `target_counts` (of True targets), int32 [N]."""

    meta: Meta
    lengths: npt.NDArray[np.int32]
    target_counts: npt.NDArray[np.int32]
    _offsets: npt.NDArray[np.int64]
    _tokens: npt.NDArray[np.int32]
    _targets: npt.NDArray[np.uint8]

    @classmethod
    def open(cls, path: Path) -> Corpus:
        """Opens a folder made by `build`. Raises UserError if it is missing or damaged."""
        try:
            meta = Meta(**json.loads((path / _META).read_text()))
            arrays = {name: np.memmap(path / f"{name}.bin", dtype, mode="r") for name, dtype in _DTYPES.items()}
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"token cache {path} cannot be opened ({error}); delete that folder") from error
        sizes = [len(arrays[name]) for name in _DTYPES]
        if sizes != [meta.tokens, meta.tokens, meta.documents + 1, meta.documents]:
            raise UserError(f"token cache {path} is damaged (a file has the wrong size); delete that folder")
        return cls(
            meta=meta,
            lengths=np.diff(arrays["offsets"]).astype(np.int32),
            target_counts=np.array(arrays["target_counts"]),
            _offsets=arrays["offsets"],
            _tokens=arrays["tokens"],
            _targets=arrays["targets"],
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, i: int) -> Document:
        """Document i, 0 <= i < len (else IndexError). Its arrays are read-only views of the mapped files."""
        if not 0 <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        part = slice(int(self._offsets[i]), int(self._offsets[i + 1]))
        return Document(np.asarray(self._tokens[part]), np.asarray(self._targets[part]).view(np.bool_))


def build(
    data: Data,
    which: Literal["train", "eval"],
    template: Template,
    check_stop: Callable[[], None],
    progress: Callable[[int], None],
) -> Path:
    """The cache folder of `data.train` or `data.eval`, written first unless it is there already.

    `check_stop` raises to give up, and nothing half-written stays; `progress` takes the number of records done.
    Both are called every few records, `check_stop` also while another job writes the same folder. Raises UserError
    for bad data, for data without anything to learn, and where the cache cannot be written.
    """
    spec, split = (data.train, data.train_split) if which == "train" else (data.eval, data.eval_split)
    if spec is None:
        raise UserError("data.eval is not set; name the held-out data there")
    root = _root(data)
    folder = root / _key(data, spec, split, template, root)
    if folder.exists():
        return folder
    with _writable(root):
        root.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        with _locked(root / f"{folder.name}.lock", check_stop):
            if not folder.exists():
                _write(folder, data, spec, split, template, check_stop, progress)
    return folder


def _root(data: Data) -> Path:
    cache = Path(data.cache) if data.cache else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "distft"
    return cache.expanduser() / "tokens"


def _key(data: Data, spec: str, split: str, template: Template, root: Path) -> str:
    source = sources.fingerprint(spec, split, data.hub_config, memory=root)
    parts = [FORMAT, source, data.fields, split, template.digest, data.row_tokens, data.overlong]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


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
            f"cannot write the token cache in {root}: {error.strerror}; make room, or name another folder in data.cache"
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
    data: Data,
    spec: str,
    split: str,
    template: Template,
    check_stop: Callable[[], None],
    progress: Callable[[int], None],
) -> None:
    """Writes beside `folder` and publishes by one rename, so that a folder by this name is always whole."""
    temporary = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        with _Writer(temporary, data, spec) as writer:
            for record in sources.read(spec, split, data.hub_config):
                if writer.records % _EVERY == 0:
                    check_stop()
                    progress(writer.records)
                writer.add(template.encode(record, data.fields))
        progress(writer.records)
        meta = writer.meta()
        if meta.documents == 0:
            raise UserError(_why_empty(meta, data))
        _dump(temporary / _META, json.dumps(asdict(meta), indent=1))
        temporary.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        # Another job was first. What it made from the same bytes is the same.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _why_empty(meta: Meta, data: Data) -> str:
    if meta.records == 0:
        return f"data {meta.source} holds no record"
    if meta.dropped_long == meta.records:
        return (
            f"all {meta.records} records of {meta.source} are longer than data.row_tokens ({data.row_tokens}); "
            f"raise it, or set data.overlong to split"
        )
    return (
        f"no document from the {meta.records} records of {meta.source} has anything to predict "
        f"({meta.dropped_long} too long, the rest without an assistant's turn or any text)"
    )


def _dump(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        _sync(file.fileno())


def _sync(descriptor: int) -> None:
    # Without it a machine that dies after the rename may leave a whole folder of empty files.
    os.fsync(descriptor)


class _Writer:
    """Appends documents to the files of a cache folder and counts. Memory does not grow with the data."""

    def __init__(self, folder: Path, data: Data, source: str) -> None:
        self.records = 0
        self._row_tokens = data.row_tokens
        self._drop = data.overlong == "drop"
        self._source = source
        self._documents = self._tokens = self._targets = 0
        self._split = self._dropped_long = self._dropped_no_target = 0
        self._stack = ExitStack()
        self._files = {name: self._stack.enter_context((folder / f"{name}.bin").open("wb")) for name in _DTYPES}

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._stack:
            if kind is None:
                self._put("offsets", np.array([self._tokens]))
                for file in self._files.values():
                    file.flush()
                    _sync(file.fileno())

    def add(self, document: Document) -> None:
        """Adds one record's document, in pieces if it is longer than a row."""
        self.records += 1
        length, size = len(document.tokens), self._row_tokens
        if length > size and self._drop:
            self._dropped_long += 1
            return
        self._split += length > size
        for begin in range(0, max(length, 1), size):
            targets = document.targets[begin : begin + size].copy()
            targets[:1] = False  # nothing comes before it in its row
            self._add(document.tokens[begin : begin + size], targets)

    def _add(self, tokens: npt.NDArray[np.int32], targets: npt.NDArray[np.bool_]) -> None:
        count = int(targets.sum())
        if count == 0:
            self._dropped_no_target += 1
            return
        self._put("offsets", np.array([self._tokens]))
        self._put("tokens", tokens)
        self._put("targets", targets)
        self._put("target_counts", np.array([count]))
        self._documents += 1
        self._tokens += len(tokens)
        self._targets += count

    def _put(self, name: str, values: npt.NDArray[np.generic]) -> None:
        self._files[name].write(values.astype(_DTYPES[name]).tobytes())

    def meta(self) -> Meta:
        return Meta(
            source=self._source,
            records=self.records,
            documents=self._documents,
            tokens=self._tokens,
            targets=self._targets,
            split=self._split,
            dropped_long=self._dropped_long,
            dropped_no_target=self._dropped_no_target,
        )
