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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distft.data import bad_records, checksums, encoding, leftovers, mending, named_files, parts, sources
from distft.data.bad_records import Bad
from distft.data.cache_writer import CacheWriter
from distft.data.corpus import META, Meta
from distft.data.crew import Crew, Offer
from distft.data.records import Encoder, NamesFiles
from distft.data.sources import Source
from distft.errors import UserError, no_space
from distft.process.cores import cores
from distft.run.digest import of_parts
from distft.run.files import write_atomically

FORMAT = 3  # of the folder; raise it when its files change
CONTENT = 2  # of what runs know their data by; raised, no run that was begun before goes on with the same data

_POLL = 0.5  # seconds between two tries for the lock


def build_cache(
    source: Source,
    encoder: Encoder,
    cache: str | None,
    check_stop: Callable[[], None],
    progress: Callable[[int], None],
    expect: Callable[[int], None] = lambda lines: None,
    workers: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    verify: bool = False,
    crew: Crew | None = None,
) -> Path:
    """The cache folder of a source as an encoder sees it, written first unless it is there already, and whole.

    `check_stop` raises to give up; the next call goes on from there, also after a kill, and a cache folder is never
    half written. `progress` takes the number of records done.
    Both are called every few records, `check_stop` also while another job writes the same folder. `expect` is told how
    many records there are at most, where that is known before. Raises UserError for bad data, for data without anything
    to learn, and where the cache cannot be written; BadRecords if more records are bad than the source allows.

    Args:
        workers: processes that encode a large file at a time; None: one per core that this process may use.
        say: is told, in a sentence, what is damaged in a folder that is there already; that is made anew.
        verify: look for damage in all of such a folder, also if it is large. See `mending.damage`.
        crew: processes that may take parts, see `help_build`.
    """
    root = root_of(cache)
    key = _key(source, encoder, root, check_stop)
    folder = root / key
    if folder.exists() and not mending.damage(folder, verify):
        _check_bad(folder, source)
        return folder

    def unchanged() -> bool:
        return _key(source, encoder, root, check_stop) == key

    with writable(root):
        root.mkdir(parents=True, exist_ok=True)
        leftovers.remove(root)
        with _locked(root / f"{folder.name}.lock", check_stop) as alone:
            if folder.exists():  # another one may have mended it meanwhile
                _mend(folder, source, encoder, check_stop, say, verify)
            if not folder.exists():
                pieces = sources.pieces(source, encoding.PART_BYTES)
                if (lines := sources.lines_of(pieces)) is not None:
                    expect(lines)
                # alone, it may go on with what another one left; if not, that one may be at work
                begun = f"{key}.part" if len(pieces) == 1 else f"{key}.by-{encoding.PART_BYTES}.part"
                part = root / (begun if alone else f"{key}.tmp-{uuid.uuid4().hex}")
                work = encoding.Work(source, encoder, pieces, workers or cores(), check_stop, progress)
                try:
                    _write(part, folder, work, crew or Crew(), unchanged)
                finally:
                    if not alone:
                        shutil.rmtree(part, ignore_errors=True)
    _check_bad(folder, source)
    return folder


def help_build(
    source: Source,
    encoder: Encoder,
    cache: str | None,
    check_stop: Callable[[], None],
    progress: Callable[[int], None],
    offer: Offer,
    crew: Crew,
) -> None:
    """Encode parts of a source for the process that writes its cache folder, until none is left; none if this one sees
    other data, or another disk."""
    pieces = parts.pieces_of(offer, source)
    if pieces is not None and _key(source, encoder, root_of(cache), check_stop) == offer.key:
        parts.help_out(encoding.Work(source, encoder, pieces, cores(), check_stop, progress), offer, crew)


def left_out(folder: Path, source: Source) -> list[Bad]:
    """The bad records that are not in a cache folder, with this source's name: another one with the same bytes may
    have filled it."""
    return bad_records.listed(folder / bad_records.FILE, Meta.read(folder).source, source.name)


def encoded(source: Source, encoder: Encoder, cache: str | None, check_stop: Callable[[], None]) -> Path | None:
    """The cache folder of a source as an encoder sees it, if it is there and sound. Raises BadRecords as
    `build_cache`."""
    root = root_of(cache)
    folder = root / _key(source, encoder, root, check_stop)
    if not folder.exists() or mending.damage(folder, False):
        return None
    _check_bad(folder, source)
    return folder


def _check_bad(folder: Path, source: Source) -> None:
    """Of a folder that a run may have filled which allows for more."""
    if bad := left_out(folder, source):
        bad_records.check(source, bad, Meta.read(folder).records)


def _mend(
    folder: Path,
    source: Source,
    encoder: Encoder,
    check_stop: Callable[[], None],
    say: Callable[[str], None],
    verify: bool,
) -> None:
    """Makes what is damaged in a folder anew; puts the folder away where only all of it can be."""
    if not (spots := mending.damage(folder, verify)):
        return
    more = f" and {len(spots) - 1:,} more places" if len(spots) > 1 else ""
    say(f"token cache {folder} is damaged: {spots[0]}{more}; what was encoded there is made anew")
    if not mending.mend(folder, spots, source, encoder, check_stop):
        aside = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex}")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    mending.forget(folder)


def root_of(cache: str | None) -> Path:
    """The folder that holds the cache folders."""
    found = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "distft"
    return found.expanduser() / "tokens"


def content_of(source: Source, encoder: Encoder, cache: str | None, check_stop: Callable[[], None]) -> str:
    """sha256 (hex) of what the documents of a run are made from; the encoder may cut them. Runs know their data by it,
    so it does not depend on how a folder is written."""
    return _key(source, encoder, root_of(cache), check_stop, CONTENT)


def _key(source: Source, encoder: Encoder, root: Path, check_stop: Callable[[], None], form: int = FORMAT) -> str:
    known = [form, sources.fingerprint(source, memory=root), encoder.digest, sorted(encoder.columns.items())]
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    if isinstance(encoder, NamesFiles):
        files = named_files.digest(source, encoder, of_parts(*known[1:]), root, check_stop)
        key = key if files is None else of_parts(key, files)
    return key


@contextmanager
def writable(root: Path) -> Iterator[None]:
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
def _locked(path: Path, check_stop: Callable[[], None]) -> Iterator[bool]:
    """Holds the lock that keeps two jobs from doing the same work. An economy only: the rename is what is safe.
    False where the file system has no locks."""
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
                break
            except BlockingIOError:
                check_stop()
                time.sleep(_POLL)
            except OSError:  # a file system without locks
                alone = False
                break
        yield alone


def _write(
    part: Path,
    folder: Path,
    work: encoding.Work,
    crew: Crew,
    unchanged: Callable[[], bool],
) -> None:
    """Writes into `part` and publishes it by one rename, so that a folder by its final name is always whole.

    Raises UserError as `build_cache`, also where the data are not `unchanged` at the end: the name tells what they
    were.
    """
    source, columns = work.source, dict(work.encoder.columns)
    try:
        with CacheWriter(part, columns) as writer:
            parts.encode(work, writer, crew, folder.name)
            written = writer.finish()
        work.progress(written.records)
        counts = {
            key: getattr(written, key) for key in ("records", "documents", "size", "targets", "notes", "warnings")
        }
        meta = Meta(source.name, columns, **counts)
        bad_records.check(source, bad_records.listed(part / bad_records.FILE), meta.records)
        meta.check_usable()
        if not unchanged():
            raise UserError(f"data {source.name} changed while being read; run the same command again")
        text = json.dumps(_entries(meta), indent=1)
        write_atomically(part / META, text)
        checksums.write(part, {**written.sums, META: checksums.sums_of(text.encode())})
        part.rename(folder)
    except OSError as error:
        if no_space(error):
            shutil.rmtree(part, ignore_errors=True)
        if not folder.exists():
            raise
        # Another job was first. What it made from the same bytes is the same.
    except UserError:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _entries(meta: Meta) -> dict[str, Any]:
    """As JSON. What is new in it is left out where it says nothing, for other versions share the cache."""
    return {key: value for key, value in asdict(meta).items() if value or key != "warnings"}
