"""Records from files, from folders written by `datasets`, and from the hub."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distft import pulse
from distft.data.types import Record
from distft.digest import remembered
from distft.errors import UserError

_CHUNK = 1 << 20  # bytes


def read(spec: str, split: str, hub_config: str | None) -> Iterator[Record]:
    """The records of a file (.jsonl .json .csv .parquet), a folder written by `datasets`, or a hub data set.

    Streams, but for a .json array, which is parsed whole. `split` matters where the source has several, `hub_config`
    on the hub only. Raises UserError, here or while iterating, naming the file and the line.
    """
    path = _local(spec)
    if path is None:
        return _rows(spec, _load_hub(spec, split, hub_config))
    if path.is_dir():
        return _rows(str(path), _load_folder(path, split))
    return _READERS[path.suffix.lower()](path)


def fingerprint(spec: str, split: str, hub_config: str | None, memory: Path | None = None) -> str:
    """sha256 (hex) of the content: the bytes of the file or of the folder's files; the fingerprint of a hub data set.

    Args:
        memory: a folder that remembers digests of sources on disk (see `remembered`).

    Raises UserError where `read` would find nothing to read.
    """
    path = _local(spec)
    if path is None:
        return hashlib.sha256(str(_load_hub(spec, split, hub_config)._fingerprint).encode()).hexdigest()
    path = path.absolute()
    # `datasets` may leave cache-*.arrow files of its own in such a folder.
    inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("cache-"))
    files = inside if path.is_dir() else [path]

    def compute() -> str:
        digest = hashlib.sha256()
        for file in files:
            if file != path:
                digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
            _hash_file(file, digest)
        return digest.hexdigest()

    if memory is None:
        return compute()
    name = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    return remembered(files, memory / f"source-{name}.json", compute)


def _local(spec: str) -> Path | None:
    """The file or folder that `spec` names, or None for a hub id."""
    path = Path(spec).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            raise UserError(
                f"data folder {spec} was not written by datasets' save_to_disk; name a file in it ({_known()})"
            )
        return path
    if path.exists():
        if path.suffix.lower() not in _READERS:
            raise UserError(f"data file {spec} has a suffix that is not known; known are {_known()}")
        return path
    if path.suffix.lower() in _READERS or spec.startswith((".", "/", "~")):
        raise UserError(f"data file {spec} does not exist (relative paths start from {Path.cwd()})")
    return None


def _known() -> str:
    return " ".join(_READERS)


def _hash_file(path: Path, digest: Any) -> None:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                pulse.moving()
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"cannot read data file {path}: {error.strerror}") from error


def _lines(path: Path) -> Iterator[str]:
    """Decoded lines with their ends, without a byte-order mark. Splits at \\n only: text may hold U+2028."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(f"{path}:{number} is not UTF-8 ({error}); convert the file to UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read data file {path}: {error.strerror}") from error


def _read_jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), 1):
        if text := line.strip():
            yield _record(f"{path}:{number}", _parse(text, path, number))


def _read_json(path: Path) -> Iterator[Record]:
    """An array of objects; a file that begins otherwise is read as JSON lines, which is what such files hold."""
    if not next((line.lstrip() for line in _lines(path) if line.strip()), "").startswith("["):
        yield from _read_jsonl(path)
        return
    for index, value in enumerate(_parse("".join(_lines(path)), path, 1)):
        yield _record(f"{path}[{index}]", value)


def _parse(text: str, path: Path, line: int) -> Any:
    """The JSON value of `text`, which begins on `line` of `path`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}"
        raise UserError(f"{place} is not valid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets nested thousands deep
        raise UserError(f"{path}:{line} cannot be parsed as JSON: {error}") from error


def _record(where: str, value: Any) -> Record:
    if not isinstance(value, dict):
        raise UserError(f"{where} holds a JSON {type(value).__name__}, expected an object with named fields")
    return Record(where, value)


def _read_csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than one long text
    rows = csv.reader(_lines(path), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in rows:
            if header is None:
                header = row or None
            elif row:
                yield _csv_record(f"{path}:{line}", header, row)
            line = rows.line_num + 1  # a quoted field may span lines; name the first
    except csv.Error as error:
        raise UserError(f"{path}:{line} is not valid CSV: {error}") from error


def _csv_record(where: str, header: list[str], row: list[str]) -> Record:
    if len(row) != len(header):
        raise UserError(f"{where} has {len(row)} columns but the header has {len(header)}; quote fields with commas")
    return Record(where, dict(zip(header, row, strict=True)))


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1000)
            yield from _rows(str(path), (row for batch in batches for row in batch.to_pylist()))
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"data file {path} cannot be read as parquet: {_cause(error)}") from error


_READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}


def _rows(name: str, rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    for index, row in enumerate(rows):
        yield Record(f"{name}[{index}]", row)


def _load_folder(path: Path, split: str) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"data folder {path} cannot be loaded by datasets: {_cause(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"data folder {path} has no split {split!r}; it has {', '.join(loaded)}")
        return loaded[split]
    return loaded


def _load_hub(spec: str, split: str, hub_config: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(spec, hub_config, split=split)
    except Exception as error:  # of datasets, the hub's client, its HTTP library, or the file formats
        raise UserError(
            f"data {spec!r} is no file or folder here, and could not be loaded from the hub as split {split!r}: "
            f"{_cause(error)}"
        ) from error


def _cause(error: Exception) -> str:
    """An error's first line: these libraries write paragraphs."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
