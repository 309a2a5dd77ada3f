"""What a user can get wrong: one sentence that names the place, an exit code, and a run that is left as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.e2e.command import Ended, Workplace, about, checkpoints, flip, losses
from tests.e2e.conftest import Made

# --- found before any rank is started ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.stepz=5"], ["train.stepz", "unknown key", "did you mean steps?"]),
        (["train.lr=fast"], ["train.lr", "'fast'", "a number"]),
        (["name=../x"], ["name", "'../x'"]),
        (["train.global_batch=5"], ["global_batch 5", "micro_batch 2", "nearest", "4"]),
        (["train.global_batch=6", "--nproc", "2"], ["global_batch 6", "2 ranks", "global_batch=4 or 8"]),
    ],
)
def test_recipe(place: Workplace, overrides: list[str], told: list[str]) -> None:
    ended = place.run("train", "recipe.yaml", *overrides)
    assert ended.code == 2
    assert "\n" not in ended.sentence
    for part in told:
        assert part in ended.sentence
    assert not (place.folder / "x").exists()
    assert not (place.folder.parent / "x").exists()


def test_recipe_names_the_line(place: Workplace) -> None:
    text = (place.folder / "recipe.yaml").read_text().replace("keep: 2", "kep: 2")
    (place.folder / "misspelt.yaml").write_text(text)
    ended = place.run("train", "misspelt.yaml")
    assert ended.code == 2
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "kep" in line)
    assert ended.sentence.startswith(f"misspelt.yaml:{line}: checkpoint.kep: unknown key; did you mean keep?")


def test_no_recipe(place: Workplace) -> None:
    ended = place.run("train", "nowhere.yaml")
    assert ended.code == 2
    assert "nowhere.yaml" in ended.sentence
    assert "\n" not in ended.sentence


def test_a_first_start_that_failed_takes_a_corrected_recipe(place: Workplace) -> None:
    """Nothing was saved, so nothing can be lost."""
    (place.folder / "broken.jsonl").write_text('{"prompt": "x"}\n')
    run = place.folder / "corrected"
    failed = place.run("train", "recipe.yaml", "data.train=broken.jsonl", "--run-dir", run)
    assert failed.code == 2
    assert "broken.jsonl:1" in failed.sentence
    ended = place.run("train", "recipe.yaml", "train.steps=2", "--run-dir", run)
    assert ended.code == 0, ended.err
    assert "has no checkpoint yet, so it starts over with the new recipe; changed: data.train, train.steps" in ended.out
    assert list(losses(run)) == [1, 2]
    refused = place.run("train", "recipe.yaml", "train.steps=3", "--run-dir", run)
    assert "add --allow train.steps" in refused.sentence


def test_another_recipe_in_the_run_folder(preempted: Made) -> None:
    before = contents(preempted.run)
    command = ("train", "recipe.yaml", "data.eval=eval.jsonl", "train.lr=0.5", "--run-dir", preempted.run)
    ended = preempted.place.run(*command, "--nproc", "2")
    assert ended.code == 2
    assert "train.lr: 0.01 before, 0.5 now" in ended.sentence
    assert contents(preempted.run) == before


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


# --- found in a rank --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Overrides that make the recipe wrong, and what must be told about it."""

    overrides: list[str]
    told: list[str]
    code: int = 2


CASES = {
    "missing data": Case(["data.train=gone.jsonl"], ["gone.jsonl", "does not exist"]),
    "broken JSON": Case(["data.train=broken.jsonl"], ["broken.jsonl:7", "not valid JSON"]),
    "empty data": Case(["data.train=empty.jsonl"], ["empty.jsonl"]),
    "missing model": Case(["model={path: ./no-model}"], ["model.path", "no-model"]),
    "unknown hub id": Case(["model={path: nobody/nothing}"], ["model.path", "nobody/nothing"]),
    "unknown architecture": Case(["model.init.architecture=lama"], ["model.init.architecture", "'lama'"]),
    "targets": Case(
        ["adapter.targets=[q_prj]", "data.train=long.jsonl", "data.overlong=drop"],
        ["adapter.targets", "'q_prj'", "q_proj"],
    ),
    "not finite": Case(
        ["train.lr=1e30", "train.clip=0", "checkpoint.every=1"], ["step 2", "train.jsonl", "train.lr"], code=1
    ),
}


@dataclass(frozen=True)
class Result:
    ended: Ended
    run: Path


@pytest.fixture(scope="module")
def results(place: Workplace, preempted: Made, full: Made) -> dict[str, Result]:
    """All cases, two at a time, one rank each."""
    lines = place.write_records("broken.jsonl", 12).read_text().splitlines()
    lines[6] = lines[6][:-5]
    (place.folder / "broken.jsonl").write_text("\n".join(lines))
    (place.folder / "empty.jsonl").write_text("")

    def bad(name: str) -> Result:
        run = place.folder / f"bad-{name.replace(' ', '-')}"
        return Result(place.run("train", "recipe.yaml", *CASES[name].overrides, "--run-dir", run, "--nproc", "1"), run)

    def changed(name: str, change: Callable[[Path], None]) -> Result:
        run = preempted.copy(name)
        change(run)
        return Result(place.run("train", "--run-dir", run, "--nproc", "1"), run)

    def change_data(run: Path) -> None:
        place.write_records("changed.jsonl", 61)
        text = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(text.replace("train.jsonl", "changed.jsonl"))

    with ThreadPoolExecutor(2) as pool:
        waiting = {name: pool.submit(bad, name) for name in CASES}
        waiting["changed data"] = pool.submit(changed, "changed-data", change_data)
        waiting["changed base"] = pool.submit(
            changed, "changed-base", lambda run: flip(run / "base" / "model.safetensors")
        )
        return {name: result.result() for name, result in waiting.items()}


@pytest.mark.parametrize("name", CASES)
def test_found_in_a_rank(results: dict[str, Result], name: str) -> None:
    case, (ended, run) = CASES[name], (results[name].ended, results[name].run)
    assert ended.code == case.code, ended.err
    assert "\n" not in ended.sentence
    for part in case.told:
        assert part in ended.sentence
    content = about(run)
    assert content["state"] == "failed"
    assert content["attempts"][0]["cause"] == ended.sentence
    assert content["attempts"][0]["exit_code"] == case.code


def test_nothing_not_finite_is_saved(results: dict[str, Result]) -> None:
    run = results["not finite"].run
    assert sorted(losses(run)) == [1]
    assert [folder.name for folder in checkpoints(run)] == ["step-00000001"]
    for path in (run / "checkpoints").rglob("*.safetensors"):
        assert all(np.isfinite(tensor).all() for tensor in load_file(path).values())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("changed data", "add --allow data.content, or use the same values:\n  needs --allow: data.content: '"),
        ("changed base", "use another --run-dir, or the same values:\n  refused: model.content: '"),
    ],
)
def test_changed_between_attempts(results: dict[str, Result], preempted: Made, name: str, told: str) -> None:
    ended, run = results[name].ended, results[name].run
    assert ended.code == 2, ended.err
    assert f" does not match this run; {told}" in ended.sentence
    assert about(run)["attempts"][1]["cause"] == ended.sentence
    assert losses(run) == losses(preempted.run)
    assert [folder.name for folder in checkpoints(run)] == [folder.name for folder in checkpoints(preempted.run)]


def test_a_record_longer_than_a_row_is_counted(results: dict[str, Result], full: Made) -> None:
    assert "; 1 longer than a row were split" in full.ended.err
    assert "; 1 longer than a row were dropped" in results["targets"].ended.err


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_disk_full(place: Workplace, small_disk: Path) -> None:
    run = small_disk / "run"
    overrides = ("adapter={type: none}", "train.steps=12", "checkpoint={every: 1, keep: 12}")
    command = ("train", "recipe.yaml", *overrides, "--run-dir", run, "--nproc", "1")
    ended = place.run(*command)
    assert ended.code == 2, ended.err
    assert "no space left" in ended.sentence
    assert "\n" not in ended.sentence
    saved = checkpoints(run)
    assert saved
    assert saved[-1].name < "step-00000012"
    [seen] = json.loads(place.run("status", "--json", run).out)
    assert seen["state"] in ("failed", "lost")  # lost: not even run.json could be written
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    ended = place.run(*command)
    assert ended.code == 0, ended.err
    assert "is not used" not in ended.err  # all that was there before is whole
    assert about(run)["attempts"][1]["first_step"] == int(saved[-1].name.removeprefix("step-")) + 1
    assert sorted(losses(run)) == list(range(1, 13))


# --- commands that only look ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["--help", "status", "config"])
def test_looking_imports_no_torch(place: Workplace, preempted: Made, command: str) -> None:
    args = {"--help": [], "status": [preempted.run], "config": ["recipe.yaml"]}[command]
    looked = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "distft", command, *args],
        cwd=place.folder,
        env=place.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert looked.returncode == 0, looked.stderr
    assert looked.stdout
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in looked.stderr.splitlines() if "|" in line}
    assert "distft" in imported
    assert not imported & {"torch", "transformers", "peft", "deepspeed", "datasets", "wandb", "numpy"}
