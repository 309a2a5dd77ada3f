"""Places of data on disk: a file, a folder of files, or a pattern that several files match."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from distft.data import text_lines
from distft.errors import UserError
from distft.recipe.section import is_url
from distft.recipe.sources import is_pattern

SENTENCES = (".conll", ".bio", ".iob")
TABLES = {".csv": ",", ".tsv": "\t"}
TEXTS = (".txt", ".text")
SUFFIXES = (".jsonl", ".json", ".parquet", *SENTENCES, *TABLES, *TEXTS)

_SPLIT = re.compile(r"(train|test|dev|valid|validation|eval)(?![a-z])", re.IGNORECASE)


def suffix_of(path: Path) -> str:
    """In small letters, and without .gz or .zst."""
    return (Path(path.stem) if text_lines.is_compressed(path) else path).suffix.lower()


def files(spec: str) -> list[Path] | None:
    """The data files that a place names, in the order in which they are read: one, those that match, or those in a
    folder and below it, by name. None for a folder written by `datasets`, and for what is a hub id.

    Raises:
        UserError: there is no such file, or the folder does not tell what to read.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return None if is_of_datasets(path) else _inside(path, spec)
    if path.exists():
        return [path]
    if is_pattern(spec):
        found = sorted(Path(one) for one in glob.glob(str(path), recursive=True))
        if not (matching := [one for one in found if one.is_file()]):
            raise UserError(f"no data file matches {spec} (relative paths start from {Path.cwd()})")
        return matching
    if (
        text_lines.is_compressed(path)
        or suffix_of(path) in SUFFIXES
        or spec.startswith((".", "/", "~"))
        or is_url(spec)
    ):
        raise missing(spec)
    return None


def is_on_hub(spec: str) -> bool:
    """Raises UserError where it must be a file that is not there."""
    return files(spec) is None and not Path(spec).expanduser().exists()


def missing(spec: str) -> UserError:
    if is_url(spec):
        return UserError(f"data {spec} is an address on the web; download it first, and give the file")
    return UserError(f"data file {spec} does not exist (relative paths start from {Path.cwd()})")


def is_of_datasets(folder: Path) -> bool:
    """Whether `save_to_disk` of the datasets library wrote it."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _inside(folder: Path, spec: str) -> list[Path]:
    hidden = (".", "_")
    below = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    shown = [path for path in below if not any(part.startswith(hidden) for part in path.parts)]
    found = [path for path in shown if suffix_of(path) in SUFFIXES]
    if not found:
        raise UserError(
            f"data folder {spec} holds no data files ({' '.join(SUFFIXES)}, also with .gz or .zst), nor was it written "
            "by save_to_disk of the datasets library"
        )
    kinds = sorted({suffix_of(path) for path in found})
    if len(kinds) > 1:
        raise UserError(f"data folder {spec} holds {_and(kinds)} files; say which to read: {spec}/**/*{kinds[0]}")
    splits = sorted({split[1].lower() for path in found if (split := _SPLIT.match(path.as_posix()))})
    if len(splits) > 1:
        first = next(path for path in found if _SPLIT.match(path.as_posix()))
        raise UserError(
            f"data folder {spec} holds the splits {_and(splits)}, by the names of its files; say which to read, such "
            f"as {spec}/{first}"
        )
    return [folder / path for path in found]


def _and(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} and {last}"
