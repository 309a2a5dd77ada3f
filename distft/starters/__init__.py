"""What to start from: the recipes of `configs/` and what `slurm/` has for a site, as they travel with the package.

In the repository they are symbolic links, so there is one copy of each file; a wheel holds the files themselves.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files("distft.starters")))
SITE, SBATCH = FOLDER / "sites" / "example.toml", FOLDER / "train.sbatch"
_SAMPLE = Path(str(files("distft.sample")))
_PLAIN = re.compile(r"(?!(?i:true|false|null|yes|no|on|off|y|n)\Z)(\.{0,2}/|[A-Za-z_])[A-Za-z0-9/._-]*")


def names() -> list[str]:
    """The recipes, by the names that `recipe` takes."""
    return sorted(path.stem for path in (FOLDER / "configs").glob("*.yaml"))


def recipe(name: str) -> str:
    """The YAML of configs/NAME.yaml, with absolute paths to the embedded sample: right in whatever folder it is put."""
    text = (FOLDER / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    return re.sub(r"(?:\.\./)?distft/sample/([\w.-]+)", lambda found: quoted(str(_SAMPLE / found[1])), text)


def quoted(text: str) -> str:
    """A text as a YAML value, in quotes unless it is sure to need none."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=not text.isprintable())
