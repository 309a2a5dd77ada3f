"""The shape of the code: imports point down, commands that only look are light, and no module grows fat."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNGS = [  # lowest first; whole packages, and the modules directly in distft
    {"errors", "sample", "starters"},
    {"plugins"},
    {"process", "recipe", "exit_codes"},
    {"run"},
    {"plan"},
    {"launcher", "metrics", "data", "engine"},
    {"checkpoint", "tasks"},
    {"model", "commands"},
    {"training"},
    {"inference"},
    {"cli"},
    {"__main__"},
]
FOR_LAUNCHERS = {"errors", "launcher", "plan", "plugins", "process", "recipe", "run"}
LIGHT = [
    "cli",
    "cli.table",
    "commands.logs",
    "commands.status",
    "commands.status_view",
    "errors",
    "launcher",
    "commands.plan",
    "commands.plan_view",
    "plan.architecture",
    "plan.estimate",
    "plan.states",
    "plan.shapes",
    "plan.trained",
    "process.stop_signals",
    "recipe.load",
    "recipe.schema",
    "run.folder",
    "run.lease",
    "run.tracking",
]
HEAVY = ["torch", "transformers", "deepspeed", "peft", "numpy"]
MOST_LINES = 320


def modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    found = {}
    for path in sorted([*ROOT.glob("distft/**/*.py"), *ROOT.glob("launchers/**/*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imported(path: Path) -> tuple[str, ...]:
    """What a module imports anywhere in it; of our own packages the modules, of others the names of the packages."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in inner)


def imports(package: str) -> Iterator[tuple[str, str]]:
    """(module, what it imports) for every import within `package`."""
    for module, path in MODULES.items():
        if module.split(".")[0] == package:
            yield from ((module, target) for target in imported(path))


def room(module: str) -> str:
    """The package or module directly in `distft` that a module is in."""
    return module.split(".")[1]


def rung(module: str) -> int:
    inside = [number for number, rooms in enumerate(RUNGS) if room(module) in rooms]
    assert len(inside) == 1, f"{room(module)} must be on one rung of the table, is on {inside}"
    return inside[0]


def test_the_table_names_only_what_exists() -> None:
    assert {name for rooms in RUNGS for name in rooms} == {room(module) for module in MODULES if "distft." in module}


def test_imports_point_down_by_whole_packages() -> None:
    up = [
        f"{module} imports {target}"
        for module, target in imports("distft")
        if module != "distft" and target.startswith("distft.")
        if room(target) != room(module) and rung(target) >= rung(module)
    ]
    assert up == []


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: {target for target in imported(path) if target in MODULES} for module, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # CycleError shows the circle


def test_launchers_see_only_their_interface_and_are_seen_by_nobody() -> None:
    seen = {room(target) for _, target in imports("launchers") if target.startswith("distft.")}
    assert seen <= FOR_LAUNCHERS
    assert [module for module, target in imports("distft") if target.split(".")[0] == "launchers"] == []


@pytest.mark.parametrize(
    ("library", "knows"),
    [
        ("deepspeed", "distft.engine.deepspeed"),
        ("tensorboard", "distft.run.tensorboard_tracker"),
        ("wandb", "distft.run.wandb_tracker"),
    ],
)
def test_one_file_knows(library: str, knows: str) -> None:
    both = [*imports("distft"), *imports("launchers")]
    assert {module for module, target in both if target.split(".")[0] == library} == {knows}


@pytest.mark.parametrize(
    "module",
    [*(f"distft.{name}" for name in LIGHT), "launchers.local", "launchers.slurm.node", "launchers.slurm.submit"],
)
def test_import_is_light(module: str) -> None:
    code = f"import sys, {module}; print(sorted({set(HEAVY)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_module_is_small_and_named_after_what_it_is(module: str) -> None:
    path = MODULES[module]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert not {"utils", "util", "helpers", "common", "manager", "misc"} & set(module.split("."))


def test_every_folder_of_tests_is_collected(pytestconfig: pytest.Config) -> None:
    passed_over = pytestconfig.getini("norecursedirs")
    folders = {path.parent.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert {"cluster", "dist", "e2e", "unit"} <= folders
    assert [name for name in folders if any(fnmatch(name, pattern) for pattern in passed_over)] == []


def test_one_file_names_the_environment_variables() -> None:
    naming = {module for module, path in MODULES.items() if re.search(r"[\"']DISTFT_[A-Z_]+[\"']", path.read_text())}
    assert naming == {"distft.process.environment"}


def test_one_file_says_how_python_is_started() -> None:
    starting = {module for module, path in MODULES.items() if re.search(r"[\"']-m[\"']", path.read_text())}
    assert starting == {"distft.process.interpreter"}  # it keeps the current folder out of the places of modules


def test_the_map_lists_every_file_with_its_first_line() -> None:
    lines = []
    for path in sorted([*ROOT.glob("distft/**/*.py"), *ROOT.glob("launchers/**/*.py")]):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert about, f"{path} does not say what it is"
        lines.append(f"    {path.relative_to(ROOT)!s:48} {about.splitlines()[0]}")
    _, _, after = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("<!-- files -->\n")
    assert after.partition("<!-- end of files -->")[0].strip("\n").splitlines() == lines, "\n".join(lines)
