"""The shape of the code: imports point down, commands that only look are light, and no module grows fat."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = [  # lowest first; a name stands for a module, or for a package with all that is in it
    {"distft.errors", "distft.audience", "distft.failpoint", "distft.sample", "distft.section"},
    {"distft.config_task"},
    {"distft.config"},
    {"distft.changes", "distft.yamlfile", "distft.budget"},
    {"distft.explain"},
    {"distft.recipe"},
    {"distft.preempt", "distft.process", "distft.rundir", "distft.clock", "distft.pulse", "distft.spawn"},
    {"distft.lease", "distft.job"},
    {"distft.dist", "distft.meter", "distft.track", "distft.console", "distft.chart", "distft.digest"},
    {"distft.metrics"},
    {"distft.report"},
    {"distft.data", "distft.engine", "distft.checkpoint"},
    {"distft.tasks"},
    {"distft.labels", "distft.models", "distft.newmodel", "distft.adapters", "distft.feed"},
    {"distft.preferences"},
    {"distft.adalora"},
    {"distft.session"},
    {"distft.export", "distft.nonfinite", "distft.evaluation"},
    {"distft.predictor", "distft.asked"},
    {
        "distft.train",
        "distft.infer",
        "distft.status",
        "distft.logs",
        "distft.probe",
        "distft.sync",
        "distft.verify",
        "distft.ranks",
    },
    {"distft.demo", "distft.forkserver", "distft.outcome"},
    {"distft.cli"},
    {"distft.__main__"},
]
FOR_LAUNCHERS = {
    f"distft.{name}"
    for name in (
        "changes",
        "job",
        "rundir",
        "config",
        "config_task",
        "section",
        "recipe",
        "errors",
        "audience",
        "preempt",
        "lease",
        "explain",
        "pulse",
    )
}
LIGHT = ["cli", "config", "errors", "job", "rundir", "recipe", "status", "preempt", "lease", "logs"]
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


def imported(path: Path) -> Iterator[str]:
    """What a module imports anywhere in it; of our own packages the modules, of others the names of the packages."""
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


def layer(module: str) -> int:
    inside = [rank for rank, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")]
    assert len(inside) == 1, f"{module} must be in one layer of the table, is in {inside}"
    return inside[0]


def test_the_table_names_only_what_exists() -> None:
    assert {name for names in LAYERS for name in names} <= MODULES.keys()


def test_imports_point_down() -> None:
    up = [
        f"{module} imports {target}"
        for module, target in imports("distft")
        if module != "distft" and target.startswith("distft.") and layer(target) > layer(module)
    ]
    assert up == []


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: {target for target in imported(path) if target in MODULES} for module, path in MODULES.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # CycleError shows the circle


def test_launchers_see_only_their_interface_and_are_seen_by_nobody() -> None:
    seen = {target for _, target in imports("launchers") if target.split(".")[0] == "distft"}
    assert seen <= FOR_LAUNCHERS
    assert [module for module, target in imports("distft") if target.split(".")[0] == "launchers"] == []


def test_one_file_knows_deepspeed() -> None:
    for name in ("distft", "launchers"):
        knowing = {module for module, target in imports(name) if target.split(".")[0] == "deepspeed"}
        assert knowing == ({"distft.engine.deepspeed"} if name == "distft" else set())


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
