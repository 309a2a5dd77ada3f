"""Data sources: files, folders written by `datasets`, and the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from distft.data import class_names, conll, content, filters, hub, hub_datasets, parallel, readers, tables, text_lines
from distft.data.places import SENTENCES, SUFFIXES, TABLES, TEXTS, files, suffix_of
from distft.data.readers import RecordStream
from distft.data.records import Broken, Record
from distft.data.text_lines import WHOLE, Stretch
from distft.errors import UserError, first_line
from distft.recipe.sources import Filter, Format, Which
from distft.recipe.tasks import TaskPart
from distft.run.commits import Repository

Piece = list[tuple["Source", Stretch]]
"""Files, or parts of files, that are read one after the other."""

_OBJECTS = {
    ".jsonl": readers.jsonl,
    ".json": readers.json_file,
    ".parquet": readers.parquet,
}


@dataclass(frozen=True)
class Source:
    """Where records come from, as a recipe names it.

    Attributes:
        spec: a file, a folder of files, a pattern, a folder written by `datasets`, or a hub id; or parallel files
            {column: file of lines}, where line i of each belongs to record i.
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
        fields: names of the columns, for the encoder of the task.
        template: file with the chat template of these records; None: that of the recipe.
        filter: which records are taken.
        title: what it is called in the record of a run.
        weight: its share of the rows, in any unit; None: all of them, once per epoch.
    """

    spec: str | Mapping[str, str]
    split: str = "train"
    hub_config: str | None = None
    delimiter: str | None = None
    columns: tuple[str, ...] = ()
    format: Format = "auto"
    encoding: str | None = None
    detect: bool = True
    bad_budget: float | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    filter: Filter = field(default_factory=dict)
    title: str = "data"
    weight: float | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        return self.spec if isinstance(self.spec, str) else " + ".join(self.spec.values())

    @property
    def repository(self) -> Repository:
        """If it is on the hub."""
        return Repository("dataset", self.name, self.revision)


def sources_of(part: TaskPart, which: Which) -> list[Source]:
    """Where the training or held-out data of a task are read; none if there are none."""
    return [
        Source(
            one.path,
            one.split or "train",
            one.hub_config,
            one.delimiter,
            tuple(one.columns or ()),
            one.format or "auto",
            one.encoding,
            part.detect,
            part.bad_budget,
            one.fields or {},
            one.template,
            one.filter,
            one.name or "data",
            one.weight,
            one.revision,
        )
        for one in (part.train if which == "train" else part.eval)
    ]


def files_of(source: Source) -> list[Source]:
    """One source for each of its files, in the order in which they are read; itself where it is no files to be read
    one after the other."""
    found = files(source.spec) if isinstance(source.spec, str) else None
    return [source] if found is None else [replace(source, spec=str(path)) for path in found]


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


def pieces(source: Source, size: int) -> list[Piece]:
    """A source in parts of about `size` bytes, which several processes can read; in order, and one at least. Files
    whose lines are records are cut, small files are put together."""
    found: list[Piece] = []
    room = 0
    for file in files_of(source):
        for stretch in _stretches(file, size):
            taken = stretch.end - stretch.begin if stretch != WHOLE else _bytes_of(file)
            if not found or taken > room:
                found.append([])
                room = size
            found[-1].append((file, stretch))
            room -= taken
    return found


def lines_of(pieces: Sequence[Piece]) -> int | None:
    """How many they have together; None where they were not counted."""
    counts = [stretch.count for piece in pieces for _, stretch in piece]
    return sum(count for count in counts if count is not None) if None not in counts else None


def _stretches(file: Source, size: int) -> list[Stretch]:
    path = Path(file.spec).expanduser() if isinstance(file.spec, str) else None
    if path is None or not path.is_file() or (reader := _reader(path, file)).func not in (readers.jsonl, readers.text):
        return [WHOLE]
    return text_lines.stretches(path, reader.keywords.get("encoding"), size)


def _bytes_of(file: Source) -> int:
    path = Path(file.spec).expanduser() if isinstance(file.spec, str) else None
    return path.stat().st_size if path is not None and path.is_file() else sys.maxsize


def read_piece(piece: Piece) -> RecordStream:
    """As `read_leniently` of these parts of files, one after the other."""
    return chain.from_iterable(read_leniently(file, stretch) for file, stretch in piece)


def read_leniently(source: Source, stretch: Stretch = WHOLE) -> RecordStream:
    """As `read`, but what cannot be read comes as Broken, and reading goes on, where lines and sentences allow it.

    Args:
        stretch: of a source that is one file.
    """
    first, *others = files_of(source)
    rows = chain(_rows(first, stretch), chain.from_iterable(_rows(file, stretch) for file in others))
    return filters.taken(rows, source.filter) if source.filter else rows


def _rows(source: Source, stretch: Stretch) -> RecordStream:
    if not isinstance(source.spec, str):
        return parallel.read(parallel.files(source.spec), _encoding(source).get("encoding"))
    path = Path(source.spec).expanduser()
    if path.is_dir():
        return readers.numbered(str(path), _named(_load_folder(path, source.split)))
    if not path.exists():
        loaded = hub_datasets.load(source.repository, source.hub_config, source.split)
        return readers.numbered(source.spec, _named(_undecoded(loaded)))
    return _reader(path, source)(path, **({} if stretch == WHOLE else {"stretch": stretch}))


def fingerprint(source: Source, memory: Path | None = None) -> str:
    """sha256 (hex) of the content (bytes of the files; the commit of a hub data set) and of how it is read.

    Args:
        memory: a folder that remembers digests of sources on disk (see `remembered`).

    Raises UserError where `read` would find nothing to read.
    """
    parts = [_described(file, memory) for file in files_of(source)]
    known = parts[0] if len(parts) == 1 else ["files", *parts]
    if source.filter:
        known = ["filter", filters.described(source.filter), known]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _described(source: Source, memory: Path | None) -> list[Any]:
    """Of one file, or of what is no file, in JSON: what is in it and how it is read."""
    if not isinstance(source.spec, str):
        found = [[column, content.digest(path, memory)] for column, path in parallel.files(source.spec).items()]
        return ["parallel", found, *_encoding(source).values()]
    path = Path(source.spec).expanduser()
    if path.is_dir():
        return ["folder", source.split, content.digest(path, memory)]
    if not path.exists():
        return ["hub", source.spec, hub.commit_of(source.repository), source.hub_config, source.split]
    reader = _reader(path, source)  # another suffix, delimiter or column is another function or keyword
    how = dict(reader.keywords)
    if form := how.pop("form", None):
        how |= {"form": described} if (described := form.described()) else {}
    return [reader.func.__name__, how, content.digest(path, memory)]


def _encoding(source: Source) -> dict[str, Any]:
    """The keyword of a reader, if the encoding is not what readers take by themselves."""
    name = text_lines.canonical(source.encoding)
    return {"encoding": name} if name else {}


def _reader(path: Path, source: Source) -> partial[RecordStream]:
    """The call that reads a file, but for its path."""
    suffix, encoding = suffix_of(path), _encoding(source)
    if source.format == "conll" or (suffix in SENTENCES and source.format == "auto"):
        form = conll.form_of(path, source.columns, source.delimiter, encoding.get("encoding"), source.detect)
        return partial(conll.conll, form=form, **encoding)
    if source.format == "lines":
        return partial(readers.text, keep_empty=True, **encoding)
    if suffix in _OBJECTS:
        return partial(_OBJECTS[suffix], **({} if suffix == ".parquet" else encoding))
    if suffix in TABLES or source.delimiter or source.columns:
        return _table(path, source, encoding)
    if suffix in TEXTS:
        return partial(readers.text, **encoding)
    raise UserError(
        f"data file {path} has an unknown suffix; known are {' '.join(SUFFIXES)}, also with .gz or .zst; "
        f"for other text files set data.format, or data.delimiter and data.columns"
    )


def _table(path: Path, source: Source, encoding: dict[str, Any]) -> partial[RecordStream]:
    delimiter = source.delimiter or TABLES.get(suffix_of(path))
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
