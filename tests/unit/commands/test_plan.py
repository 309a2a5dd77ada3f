"""`distft plan`, from files to what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distft.cli.table import app
from distft.commands.plan import plan
from distft.commands.plan_run import compared
from distft.errors import UserError
from distft.launcher import Resources
from distft.run.folder import RunDir
from tests.models.published import LLAMA_8B

RECIPE = """\
model: {path: base}
data: {train: chat.jsonl, row_tokens: 4096}
train: {steps: 9, global_batch: 64, micro_batch: 4}
adapter: {type: lora}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps(LLAMA_8B))
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path


def printed(*words: str) -> str:
    found = CliRunner().invoke(app, ["plan", *words], env={"COLUMNS": "160"})
    if found.exception is not None:
        raise found.exception
    return found.output


def test_what_does_not_fit_names_the_term_and_changes_to_copy() -> None:
    said = printed("r.yaml", "--gpu", "H100-80GB", "--nproc", "8")
    assert "it does not fit: " in said
    assert "most of it are activations (" in said
    assert "model.activation_checkpointing=true" in said
    fits = printed("r.yaml", "model.activation_checkpointing=true", "--gpu", "H100-80GB", "--nproc", "8", "--grid")
    assert "it fits: " in fits
    assert "what makes it fit" not in fits
    assert "recompute" in fits


def test_figures_as_json() -> None:
    found = json.loads(printed("r.yaml", "--gpu", "H200", "--nproc", "8", "--json"))
    assert found["peak"] == sum(found["moments"][found["peak_at"]].values())
    assert (found["world"], found["gpu"], found["fits"], found["measured"]) == (8, "H200-141GB", False, None)
    assert found["step_tokens"] == 64 * 4096


def test_a_run_is_compared_with_what_was_measured(folder: Path) -> None:
    run = RunDir(folder / "run")
    run.create("r", RECIPE.replace("base", str(folder / "base")))
    found = plan(run.path, [], Resources())
    assert found.measured is not None
    assert list(compared(found.measured, found.prediction)) == []
    run.metrics.write_text(
        '{"step": 1, "worst_memory_bytes": 5e9}\n{"step": 2}\n{"step": 20, "worst_memory_bytes": 6e9}\n'
    )
    found = plan(run.path, [], Resources(), "H200")
    assert found.measured is not None
    assert found.measured.memory == 6e9
    [said] = compared(found.measured, found.prediction)
    assert said.startswith("measured: 5.6 GiB on the worst rank, predicted ")


def test_what_cannot_be_planned_is_one_sentence(folder: Path) -> None:
    (folder / "empty").mkdir()
    for path, overrides, said in (
        ("empty", [], "empty holds no run"),
        ("empty", ["train.lr=1"], "empty is a run folder, whose recipe is what it is; leave out train.lr=1"),
        ("r.yaml", ["model.path=nowhere/model"], "nowhere/model"),
    ):
        with pytest.raises(UserError) as caught:
            plan(Path(path), overrides, Resources())
        assert said in str(caught.value)
    with pytest.raises(UserError, match="not a multiple"):
        plan(Path("r.yaml"), [], Resources(3, 8))
