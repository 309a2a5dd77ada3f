"""Every example of docs/extending.md, as it stands there: a package that brings a task, a launcher and a tracker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from distft.run.folder import RunDir
from tests.e2e.command import Ended, Workplace

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
INSIDE = ("penalty.py", "optimizer.py", "adapter.py", "reader.py", "score.py")  # they assert what they show
PENALISED = '''
from dataclasses import replace
import my_task
from distft.tasks.protocol import MICRO_BATCHES

class Penalised:
    """A task with a term that every forward pass adds, whatever is in its batch."""

    def __init__(self, inner):
        self.inner, self.counted = inner, (*inner.counted, MICRO_BATCHES)
        self.collate, self.predict, self.score = inner.collate, inner.predict, inner.score
        self.join, self.answer = inner.join, inner.answer

    def counts(self, batch):
        return {**self.inner.counts(batch), MICRO_BATCHES: 1}

    def loss(self, model, batch):
        found = self.inner.loss(model, batch)
        return {**found, "penalty": 0.0 * sum(found.values()) + 1.0}

    def factors(self, counts):
        own = self.inner.factors({name: counts[name] for name in self.inner.counted})
        return {**own, "penalty": 0.25 / counts[MICRO_BATCHES]}

def spec(settings, fields):
    base = my_task.spec(settings, fields)
    return replace(base, build=lambda setting, model: Penalised(base.build(setting, model)))
'''


def install(folder: Path, name: str, points: dict[str, dict[str, str]]) -> None:
    """What pip writes about a package, as far as entry points need it."""
    about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in points.items()
        for line in [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def package(place: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, installed as a package; its data beside the recipe."""
    folder = tmp_path_factory.mktemp("package")
    blocks = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    assert {*INSIDE, "pyproject.toml", "my_section.py", "my_task.py", "recipe.yaml"} <= blocks.keys()
    for name, text in blocks.items():
        (folder / name).write_text(text)
    install(folder, "my-package", tomllib.loads(blocks["pyproject.toml"])["project"]["entry-points"])
    words = ["good", "fine", "great", "bad", "poor", "dull"]
    records = [{"text": f"a {word} lamp {n}", "label": str(i < 3)} for n in range(2) for i, word in enumerate(words)]
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def distft(place: Workplace, package: Path, *args: str | Path) -> Ended:
    with place.start(*args, environment={"PYTHONPATH": str(package)}) as command:
        return command.end()


def test_examples_of_what_is_added_inside(package: Path) -> None:
    code = f"import runpy\nfor name in {INSIDE}: runpy.run_path(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_task_and_a_tracker_of_another_package(place: Workplace, package: Path) -> None:
    run = package / "run"
    ended = distft(place, package, "train", package / "recipe.yaml", "--run-dir", run)
    assert ended.code == 0, ended.err
    losses = {record["step"]: record["loss"] for record in RunDir(run).records() if "loss" in record}
    assert list(losses) == [1, 2, 3, 4]
    lines = (run / "losses.csv").read_text().splitlines()
    assert {int(step): float(loss) for step, loss in (line.split(",") for line in lines)} == losses
    answered = distft(place, package, "predict", run, "--prompt", "a fine lamp")
    assert json.loads(answered.out)["label"] in ("True", "False")
    other = distft(place, package, "train", package / "recipe.yaml", "task.prefix='text: '", "--run-dir", run)
    assert other.code == 2
    assert "refused: task.prefix: 'review: ' before, 'text: ' now" in other.sentence


def test_its_keys_are_checked_like_any_other(place: Workplace, package: Path) -> None:
    ended = distft(place, package, "config", package / "recipe.yaml", "task.prefx=x", "train.best=acuracy")
    assert ended.code == 2
    assert "task.prefx: unknown key; did you mean prefix? valid keys: type, prefix" in ended.sentence
    assert "did you mean accuracy? task.type prefixed-classification has the scores" in ended.sentence


def test_a_launcher_of_another_package(place: Workplace, package: Path) -> None:
    ended = distft(place, package, "submit", package / "recipe.yaml", "--launcher", "echo", "--run-dir", "x")
    assert (ended.code, ended.out) == (0, "would start x\n")
    unknown = distft(place, package, "submit", package / "recipe.yaml", "--launcher", "ecko")
    assert unknown.sentence == "no launcher is called 'ecko'; did you mean echo? installed: echo, local, slurm"
    run = package / "sent"
    assert distft(place, package, "train", package / "recipe.yaml", "--run-dir", run, "--prepare").code == 0
    sent = RunDir(run).read()
    sent.launcher = "echo"
    RunDir(run).write(sent)
    [seen] = json.loads(distft(place, package, "status", "--json", run).out)
    assert (seen["state"], seen["job"]) == ("new", None)  # it was asked, and knows nothing


def test_two_packages_with_one_name_are_refused(place: Workplace, package: Path, tmp_path: Path) -> None:
    install(tmp_path, "other-package", {"distft.launchers": {"echo": "my_launcher:EchoLauncher"}})
    path = f"{package}:{tmp_path}"
    with place.start(
        "submit", package / "recipe.yaml", "--launcher", "echo", environment={"PYTHONPATH": path}
    ) as command:
        ended = command.end()
    assert ended.code == 2
    both = "the packages my-package and other-package both provide a launcher 'echo'"
    assert ended.sentence == f"{both}; uninstall one of them"


def test_a_term_that_is_a_mean_over_forward_passes(place: Workplace, package: Path, tmp_path: Path) -> None:
    """Two micro-batches per step on two ranks; it is recorded by its name and is part of the loss."""
    (tmp_path / "penalised.py").write_text(PENALISED)
    text = (package / "my_section.py").read_text()
    (tmp_path / "penalised_section.py").write_text(text.replace("prefixed-classification", "penalised"))
    points = {"distft.task_sections": {"penalised": "penalised_section:PrefixedClassification"}}
    install(tmp_path, "penalised", {**points, "distft.tasks": {"penalised": "penalised:spec"}})
    run = tmp_path / "run"
    command = ["train", package / "recipe.yaml", "task.type=penalised", "train.micro_batch=1", "--run-dir", run]
    with place.start(*command, "--nproc", "2", environment={"PYTHONPATH": f"{tmp_path}:{package}"}) as command_:
        ended = command_.end()
    assert ended.code == 0, ended.err
    steps = [record for record in RunDir(run).records() if "loss" in record]
    assert [step["loss.penalty"] for step in steps] == [0.25] * 4
    assert all(abs(step["loss"] - step["loss.sequences"] - 0.25) < 1e-6 for step in steps)
