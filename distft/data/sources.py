"""Data sources: files, folders written by `datasets`, and the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

from distft.data import class_names, conll, hub, hub_datasets, readers, tables, text_lines
from distft.data.readers import RecordStream
from distft.data.records import Broken, Record
from distft.data.text_lines import WHOLE, Stretch
from distft.errors import UserError, first_line
from distft.process import pulse
from distft.recipe.section import is_url
from distft.recipe.tasks import TaskPart
from distft.run.commits import Repository
from distft.run.digest import remembered

_CHUNK = 1 << 20  # bytes
_OBJECTS = {
    ".jsonl": readers.jsonl,
    ".json": readers.json_file,
    ".parquet": readers.parquet,
}
_SENTENCES = (".conll", ".bio", ".iob")
_TABLES = {".csv": ",", ".tsv": "\t"}
TEXTS = (".txt", ".text")
_SUFFIXES = (*_OBJECTS, *_SENTENCES, *_TABLES, *TEXTS)


Which = Literal["train", "eval"]


@dataclass(frozen=True)
class Source:
    """Where records come from, as a recipe names it.

    Attributes:
        spec: a file, a folder written by `datasets`, or a hub id; or parallel files {column: file of lines}, where
            line i of each belongs to record i.
        split: matters where the source has several.
        hub_config: configuration name, on the hub only.
        revision: branch, tag or commit, on the hub only; None: the main branch.
        delimiter: between the columns of a text file; None: by the suffix. If it is not a comma and cells are not in
            quotes, the first column may hold it.
        columns: names of the columns of a file that has no header line.
        format: of a file, whatever its suffix; "lines": every line is a record, also an empty one.
        encoding: of text files; None: as a byte-order mark says, or UTF-8.
        detect: look into a file for what its keys leave open.
        bad_budget: share of the records that may be left out because they cannot be read or used; None: the first such
            record is refused.
    """

    spec: str | Mapping[str, str]
    split: str = "train"
    hub_config: str | None = None
    delimiter: str | None = None
    columns: tuple[str, ...] = ()
    format: Literal["auto", "conll", "lines"] = "auto"
    encoding: str | None = None
    detect: bool = True
    bad_budget: float | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        return self.spec if isinstance(self.spec, str) else " + ".join(self.spec.values())

    @property
    def repository(self) -> Repository:
        """If it is on the hub."""
        return Repository("dataset", self.name, self.revision)


def source_of(part: TaskPart, which: Which) -> Source | None:
    """Where the training or held-out data of a task are read; None if there are none."""
    spec, split = (part.train, part.train_split) if which == "train" else (part.eval, part.eval_split)
    if not spec:
        return None
    how = (part.delimiter, tuple(part.columns), part.format, part.encoding, part.detect, part.bad_budget)
    revision = part.revision_of(spec) if isinstance(spec, str) else None
    return Source(spec, split, part.hub_config, *how, revision)


def training_source(part: TaskPart) -> Source:
    found = source_of(part, "train")
    assert found is not None  # a recipe without is refused when it is read
    return found


def read(source: Source) -> Iterator[Record]:
    """The records of a source. Streams, but for a .json file that is one value, which is parsed whole.

    Raises UserError, here or while iterating, naming the file and the line.
    """
    return map(whole, read_leniently(source))


def whole(row: Record | Broken) -> Record:
    """Raises UserError where it could not be read."""
    if isinstance(row, Broken):
        raise readers.refusal(row)
    return row


def stretches(source: Source, size: int) -> list[Stretch]:
    """Where a source can be read by several processes, about `size` bytes each: a file whose lines are records. WHOLE
    alone where it cannot."""
    path = local(source.spec) if isinstance(source.spec, str) else None
    if path is None or path.is_dir() or (reader := _reader(path, source)).func not in (readers.jsonl, readers.text):
        return [WHOLE]
    return text_lines.stretches(path, reader.keywords.get("encoding"), size)


def read_leniently(source: Source, stretch: Stretch = WHOLE) -> Iterator[Record | Broken]:
    """As `read`, but what cannot be read comes as Broken, and reading goes on, where lines and sentences allow it."""
    if not isinstance(source.spec, str):
        return _read_parallel(_parallel(source.spec), _encoding(source).get("encoding"))
    path = local(source.spec)
    if path is None:
        loaded = hub_datasets.load(source.repository, source.hub_config, source.split)
        return readers.numbered(source.spec, _named(_undecoded(loaded)))
    if path.is_dir():
        return readers.numbered(str(path), _named(_load_folder(path, source.split)))
    return _reader(path, source)(path, **({} if stretch == WHOLE else {"stretch": stretch}))


def fingerprint(source: Source, memory: Path | None = None) -> str:
    """sha256 (hex) of the content (bytes of the files; the commit of a hub data set) and of how it is read.

    Args:
        memory: a folder that remembers digests of sources on disk (see `remembered`).

    Raises UserError where `read` would find nothing to read.
    """
    parts: list[Any]
    if not isinstance(source.spec, str):
        files = [[column, _content(path, memory)] for column, path in _parallel(source.spec).items()]
        parts = ["parallel", files, *_encoding(source).values()]
    elif (path := local(source.spec)) is None:
        parts = ["hub", source.spec, hub.commit_of(source.repository), source.hub_config, source.split]
    elif path.is_dir():
        parts = ["folder", source.split, _content(path, memory)]
    else:
        reader = _reader(path, source)  # another suffix, delimiter or column is another function or keyword
        how = dict(reader.keywords)
        if form := how.pop("form", None):
            how |= {"form": described} if (described := form.described()) else {}
        parts = [reader.func.__name__, how, _content(path, memory)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _content(path: Path, memory: Path | None) -> str:
    """sha256 (hex) of the bytes of a file, or of a folder's files and their names."""
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


def _hash_file(path: Path, digest: Any) -> None:
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                pulse.moving()
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"cannot read data file {path}: {error.strerror}") from error


def local(spec: str) -> Path | None:
    """The file or folder that `spec` names, or None for a hub id. Raises UserError where it must be a missing file."""
    path = Path(spec).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
            raise UserError(
                f"data folder {spec} was not written by save_to_disk of the datasets library; "
                f"give a file in it ({' '.join(_SUFFIXES)})"
            )
        return path
    if path.exists():
        return path
    if text_lines.is_gzip(path) or suffix_of(path) in _SUFFIXES or spec.startswith((".", "/", "~")) or is_url(spec):
        raise _missing(spec)
    return None


def _missing(spec: str) -> UserError:
    if is_url(spec):
        return UserError(f"data {spec} is an address on the web; download it first, and give the file")
    return UserError(f"data file {spec} does not exist (relative paths start from {Path.cwd()})")


def suffix_of(path: Path) -> str:
    """In small letters, and without .gz."""
    return (Path(path.stem) if text_lines.is_gzip(path) else path).suffix.lower()


def _encoding(source: Source) -> dict[str, Any]:
    """The keyword of a reader, if the encoding is not what readers take by themselves."""
    name = text_lines.canonical(source.encoding)
    return {"encoding": name} if name else {}


def _reader(path: Path, source: Source) -> partial[RecordStream]:
    """The call that reads a file, but for its path."""
    suffix, encoding = suffix_of(path), _encoding(source)
    if source.format == "conll" or (suffix in _SENTENCES and source.format == "auto"):
        form = conll.form_of(path, source.columns, source.delimiter, encoding.get("encoding"), source.detect)
        return partial(conll.conll, form=form, **encoding)
    if source.format == "lines":
        return partial(readers.text, keep_empty=True, **encoding)
    if suffix in _OBJECTS:
        return partial(_OBJECTS[suffix], **({} if suffix == ".parquet" else encoding))
    if suffix in _TABLES or source.delimiter or source.columns:
        return _table(path, source, encoding)
    if suffix in TEXTS:
        return partial(readers.text, **encoding)
    raise UserError(
        f"data file {path} has an unknown suffix; known are {' '.join(_SUFFIXES)}, also with .gz; "
        f"for other text files set data.format, or data.delimiter and data.columns"
    )


def _table(path: Path, source: Source, encoding: dict[str, Any]) -> partial[RecordStream]:
    delimiter = source.delimiter or _TABLES.get(suffix_of(path))
    if delimiter is None and len(source.columns) > 1:
        raise UserError(f"data file {path} has several columns; set data.delimiter to their separator")
    name = encoding.get("encoding")
    if source.delimiter is None and delimiter is not None and source.detect and not source.columns:
        delimiter = tables.delimiter_of(path, delimiter, name)
    from_right = source.delimiter not in (None, ",")
    # One column is the whole line: nothing divides it.
    how: dict[str, Any] = {"delimiter": delimiter or "\n", "columns": source.columns, "from_right": from_right}
    if source.detect and delimiter not in (None, ",") and tables.is_quoted(path, delimiter or "", name):
        how["quoted"] = True
    return partial(tables.table, **how, **encoding)


def _parallel(spec: Mapping[str, str]) -> dict[str, Path]:
    files = {column: Path(file).expanduser() for column, file in spec.items()}
    if not files:
        raise UserError("parallel data lists no files; write {column: file}")
    for column, path in files.items():
        if path.is_dir():
            raise UserError(f"data file {path} (column {column}) is a folder; parallel files are files of lines")
        if not path.exists():
            raise _missing(spec[column])
    return files


def _read_parallel(files: Mapping[str, Path], encoding: str | None) -> RecordStream:
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


def _load_folder(path: Path, split: str) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        raise UserError(f"data folder {path} cannot be loaded by datasets: {first_line(error)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"data folder {path} has no split {split!r}; it has {', '.join(loaded)}")
        return _undecoded(loaded[split])
    return _undecoded(loaded)


def _named(loaded: Any) -> Iterable[dict[str, Any]]:
    """The rows of a data set, with the names of its classes."""
    name = class_names.of_features(loaded.features.to_dict())
    return loaded if name is None else map(name, loaded)


def _undecoded(loaded: Any) -> Any:
    """Sounds as they are stored; the task decodes them, without the libraries that `datasets` wants for it."""
    import datasets

    for name, feature in loaded.features.items():
        if isinstance(feature, datasets.Audio):
            loaded = loaded.cast_column(name, datasets.Audio(decode=False))
    return loaded
