"""A profile changes nothing of what is trained, its parts add up, and it names the slow rank."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import distft.sample
from distft.commands.profile import text
from distft.errors import DONE, PREEMPTED
from distft.run.folder import RunDir
from distft.run.profile import PARTS
from tests.dist import scenario
from tests.dist.launch import run_ranks
from tests.dist.profiles import STEPS
from tests.dist.recipe import RECIPE

FIGURES = ("step", "loss", "grad_norm", "lr", "tokens")


def trained(folder: Path, what: str) -> Path:
    config = folder / "recipe.yaml"
    data = Path(distft.sample.__file__).with_name("conversations.jsonl")
    config.write_text(RECIPE.format(data=data, cache=folder / "cache"))
    run_ranks("tests.dist.profiles", 2, str(folder), str(config), what)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("profiles"), "few")


def profile_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "logs" / "attempt-001" / "profile.json").read_text())
    return found


def results(run: Path) -> tuple[list[Any], dict[str, bytes], list[Any]]:
    """What was recorded of steps, the tensors of all checkpoints, and what each rank has left behind."""
    steps = [tuple(record[name] for name in FIGURES) for record in RunDir(run).records() if "loss" in record]
    files = {str(path.relative_to(run)): path.read_bytes() for path in run.glob("checkpoints/*/*.safetensors")}
    return steps, files, [json.loads(path.read_text()) for path in sorted(run.glob("rank-*.json"))]


def check_bits(runs: Path) -> None:
    steps, files, ranks = results(runs / "plain")
    assert len(steps) == STEPS
    assert len(files) == 2
    assert ranks[0]["code"] == DONE
    assert results(runs / "profiled") == (steps, files, ranks)
    assert not (runs / "plain" / "logs" / "attempt-001" / "profile.json").exists()


def check_parts(run: Path, first: int, steps: int, saves: bool) -> None:
    """They add up to what a clock says, none that is there in every step is missing, and all can be shown."""
    found = profile_of(run)
    assert (found["first_step"], found["steps"], found["compared"]) == (first, steps, True)
    for rank in found["ranks"]:
        assert list(rank["parts"]) == list(PARTS)
        assert sum(rank["parts"].values()) == pytest.approx(rank["seconds"], rel=0.01)
        there = {name for name, seconds in rank["parts"].items() if seconds > 0.0}
        assert there - {"waiting", "checkpoint"} == set(PARTS) - {"waiting", "checkpoint", "evaluation", "launching"}
        assert ("checkpoint" in there) == saves
        assert min(rank["memory"].values()) > 1 << 25
    assert (run / "profile.png").stat().st_size > 10_000
    assert "ms per step" in text(found)


def test_the_same_bits_are_trained(runs: Path) -> None:
    check_bits(runs)


@pytest.mark.long
def test_the_same_under_zero_3_with_activations_computed_again(tmp_path: Path) -> None:
    runs = trained(tmp_path, "zero3")
    check_bits(runs)
    check_parts(runs / "profiled", 3, STEPS - 2, saves=True)  # more steps were asked for than there are


@pytest.mark.parametrize(("run", "steps", "saves"), [("profiled", 3, False), ("slow", 2, True)])
def test_parts_add_up(runs: Path, run: str, steps: int, saves: bool) -> None:
    check_parts(runs / run, 3, steps, saves)


def test_the_slow_rank_is_named(runs: Path) -> None:
    found = profile_of(runs / "slow")
    assert (found["slowest"]["rank"], found["slowest"]["part"]) == (1, "loss")
    assert "the slowest is rank 1 (" in text(found)
    early, late = (rank["parts"] for rank in found["ranks"])
    assert early["waiting"] - late["waiting"] > 0.25 * late["loss"]


def test_a_trace_is_kept_on_request(runs: Path) -> None:
    logs = runs / "profiled" / "logs" / "attempt-001"
    kept = [logs / f"rank-{rank}.trace.json.gz" for rank in range(2)]
    assert all(json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] for path in kept)
    assert not list((runs / "slow").glob("logs/*/*trace*"))


def test_a_stop_in_its_middle_saves_and_takes_none(runs: Path) -> None:
    run = runs / "stopped"
    steps, files, ranks = results(run)
    assert [rank["code"] for rank in ranks] == [PREEMPTED] * 2
    assert len(steps) == 4
    assert {Path(name).parent.name for name in files} == {"step-00000004"}
    assert not (run / "logs" / "attempt-001" / "profile.json").exists()
    assert steps == results(runs / "plain")[0][:4]
    assert scenario.losses(run)
