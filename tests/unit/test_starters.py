"""What travels in a wheel to start from is what the repository holds, each file once, with paths right anywhere."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from distft import starters
from distft.recipe.load import load

tomllib = pytest.importorskip("tomllib")  # Python 3.11
ROOT = Path(__file__).parents[2]
HELD = {
    "configs": sorted((ROOT / "configs").glob("*")),
    "sites": sorted((ROOT / "slurm" / "sites").glob("*")),
    ".": [ROOT / "slurm" / "train.sbatch"],
}


@pytest.mark.parametrize("folder", HELD)
def test_the_package_reads_the_files_of_the_repository(folder: str) -> None:
    packaged = files("distft.starters")
    assert HELD[folder]
    for original in HELD[folder]:
        assert packaged.joinpath(folder, original.name).read_bytes() == original.read_bytes()


def test_a_wheel_holds_them_all() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "distft"
    taken = {path.resolve() for pattern in setup["distft"] for path in package.glob(pattern)}
    assert {path for held in HELD.values() for path in held} <= taken


@pytest.mark.parametrize("name", starters.names())
def test_a_packaged_recipe_finds_the_sample_from_any_folder(name: str, tmp_path: Path) -> None:
    written = tmp_path / f"{name}.yaml"
    written.write_text(starters.recipe(name))
    parts = load(written, []).parts()
    found = [path for part in parts for source in (*part.train, *part.eval) for path in paths(source.path)]
    assert found
    if not name.startswith("gsm8k"):
        assert [path for path in found if not Path(path).is_file()] == []
    assert not re.search(r"(?<!/)\bdistft/sample", written.read_text())


def paths(where: str | dict[str, str]) -> list[str]:
    return list(where.values()) if isinstance(where, dict) else [where]


def test_a_path_with_odd_characters_stays_one_value() -> None:
    for path in (
        "/opt/a b/x.json",
        "/a, b: {c} #d/x",
        "/ä'\"\\/x",
        "/plain-1.0/x_y.json",
        "./x.tsv",
        "no",
        "True",
        "1",
        "2e-4",
    ):
        assert yaml.safe_load(f"{{train: {starters.quoted(path)}, eval: 1}}") == {"train": path, "eval": 1}
