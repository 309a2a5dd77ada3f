"""How many rows the training data of a recipe make: noted in the token cache by a run, for those who plan the next one.

The cache itself is found by the tokens that a tokenizer makes, which takes seconds to load. A note is found by what the
recipe says of model, task and data, and by names, sizes and times of the files.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from distft.data.places import files
from distft.data.token_cache import root_of
from distft.recipe.schema import Recipe
from distft.recipe.sources import is_pattern
from distft.run.files import write_atomically

ELSEWHERE = {
    "eval",
    "eval_split",
    "cache",
    "group_by_length",
    "balance",
    "today",
    "streaming",
}  # of `data`: hardly change a row
BYTES_PER_TOKEN = 4.0  # of English text, about


def note(recipe: Recipe, rows: int) -> None:
    """Nothing happens if it cannot be written."""
    with suppress(OSError):
        write_atomically(_path(recipe), json.dumps({"rows": rows}) + "\n")


def noted(recipe: Recipe) -> int | None:
    """None: no run has encoded these data here."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(_path(recipe).read_text(encoding="utf-8"))["rows"])
    return None


def guessed(recipe: Recipe) -> int | None:
    """From the bytes of the files if documents share rows, else from their lines; None: these do not tell it."""
    files = _files(recipe)
    if not files or any(file.suffix not in (".jsonl", ".txt", ".text", ".csv", ".tsv") for file in files):
        return None
    if recipe.task.type == "causal-lm" and recipe.data.packing is not False:
        tokens = sum(file.stat().st_size for file in files) / BYTES_PER_TOKEN
        return max(1, math.ceil(tokens / recipe.data.row_tokens))
    return sum(_lines(file) for file in files)


def _lines(file: Path) -> int:
    with open(file, "rb") as opened:
        return sum(block.count(b"\n") for block in iter(lambda: opened.read(1 << 20), b""))


def _path(recipe: Recipe) -> Path:
    """Raises OSError if the data are not there."""
    data = {key: value for key, value in recipe.data.model_dump().items() if key not in ELSEWHERE}
    model = recipe.model.model_dump(include={"path", "init", "revision"})
    files: list[Any] = []
    for file in _files(recipe):
        found = file.stat()
        files.append([str(file), found.st_size, found.st_mtime_ns])
    known = json.dumps([recipe.task.model_dump(), model, data, files], sort_keys=True, default=str)
    return root_of(recipe.data.cache) / f"rows-{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"


def _files(recipe: Recipe) -> list[Path]:
    """Files of the training data that are here; of parallel ones the first alone. A folder is a file here."""
    found = []
    for part in recipe.parts():
        for source in part.train:
            spec = source.path if isinstance(source.path, str) else next(iter(source.path.values()))
            if (path := Path(spec).expanduser()).exists():
                found.append(path)
            elif is_pattern(spec):
                found += files(spec) or []
    return found
