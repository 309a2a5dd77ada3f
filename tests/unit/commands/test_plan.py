"""`distft plan`, from files to what is printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distft.cli.table import app
from distft.commands.plan import plan
from distft.commands.plan_run import Measured, comparison
from distft.errors import UserError
from distft.plan import record
from distft.plan.prediction import Moment, text_of
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


def made_run(folder: Path) -> RunDir:
    run = RunDir(folder / "run")
    run.create("r", RECIPE.replace("base", str(folder / "base")))
    return run


def test_a_run_on_gpus_is_compared_with_what_torch_counts(folder: Path) -> None:
    run = made_run(folder)
    assert plan(run.path, [], None, None, None, False).measured is None
    run.metrics.write_text(
        '{"attempt": 1, "worst_memory_bytes": 9e9, "worst_memory_reserved_bytes": 9e9}\n{"step": 2}\n'
        '{"attempt": 2, "worst_memory_bytes": 6e9, "worst_memory_reserved_bytes": 7e9}\n'
        '{"attempt": 2, "worst_memory_bytes": 5e9, "worst_memory_reserved_bytes": 7e9}\n'
    )
    found = plan(run.path, [], None, None, "H200", False)
    assert found.measured == Measured(2, 6e9, 7e9)
    torch_counts = found.prediction.peak.total - found.prediction.peak.terms["CUDA"]
    allocated = torch_counts - found.prediction.peak.terms["lost by allocator"]
    said = comparison(found.prediction, found.measured)
    assert said.startswith(
        f"measured on the worst rank of attempt 2: 5.6 GiB allocated, predicted {text_of(allocated)} "
    )
    assert f"6.5 GiB reserved, predicted {text_of(torch_counts)} (" in said
    assert comparison(plan(run.path, [], None, None, None, False).prediction, found.measured).endswith("to compare")


def test_a_run_is_compared_with_what_its_attempt_wrote_down(folder: Path) -> None:
    run = made_run(folder)
    written = replace(
        plan(run.path, [], None, 2, None, False).prediction, moments=(Moment("save", {"weights": 10**9}),)
    )
    run.attempt_logs(3).mkdir()
    record.write(run.attempt_logs(3), written)
    run.metrics.write_text('{"attempt": 3, "worst_memory_bytes": 9e8, "worst_memory_peak_bytes": 2e9}\n')
    found = plan(run.path, [], None, None, None, False)
    assert found.prediction == written
    assert found.measured is not None
    assert comparison(found.prediction, found.measured) == (
        "measured on the worst rank of attempt 3: 1.9 GiB at most, predicted 954 MiB (+100%); "
        "858 MiB after steps, predicted 954 MiB (-10%)"
    )
    (run.attempt_logs(3) / record.FILE).write_text('{"world": 2}')
    assert (
        plan(run.path, [], None, None, None, False).prediction.peak.total > 10**10
    )  # another version's: predicted now


def test_what_cannot_be_planned_is_one_sentence(folder: Path) -> None:
    (folder / "empty").mkdir()
    for path, overrides, said in (
        ("empty", [], "empty holds no run"),
        ("empty", ["train.lr=1"], "empty is a run folder, whose recipe is what it is; leave out train.lr=1"),
        ("r.yaml", ["model.path=nowhere/model"], "nowhere/model"),
    ):
        with pytest.raises(UserError) as caught:
            plan(Path(path), overrides, None, None, None, False)
        assert said in str(caught.value)
    with pytest.raises(UserError, match="not a multiple"):
        plan(Path("r.yaml"), [], 3, 8, None, False)
