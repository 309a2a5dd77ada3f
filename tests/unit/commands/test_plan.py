"""`distft plan`, from files to what is printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distft.cli.table import app
from distft.commands.plan import plan
from distft.commands.plan_compared import compared
from distft.commands.plan_run import Measured
from distft.errors import UserError
from distft.launcher import Resources
from distft.plan import record
from distft.plan.prediction import Moment, text_of
from distft.run.batch import Batch, keep_batch
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
    assert "model.activation_checkpointing=selective" in said
    fits = printed("r.yaml", "model.activation_checkpointing=true", "--gpu", "H100-80GB", "--nproc", "8", "--grid")
    assert "it fits: " in fits
    assert "what makes it fit" not in fits
    assert "recompute" in fits


def test_figures_as_json() -> None:
    found = json.loads(printed("r.yaml", "engine.loss_chunk=0", "--gpu", "H200", "--nproc", "8", "--json"))
    assert found["peak"] == sum(found["moments"][found["peak_at"]].values())
    assert (found["world"], found["gpu"], found["fits"], found["measured"]) == (8, "H200-141GB", True, None)
    assert found["step_tokens"] == 64 * 4096
    assert json.loads(printed("r.yaml", "--gpu", "H200", "--nproc", "8", "--json"))["fits"]  # with chunks of logits


def made_run(folder: Path) -> RunDir:
    run = RunDir(folder / "run")
    run.create("r", RECIPE.replace("base", str(folder / "base")))
    return run


def test_a_run_says_what_it_has_settled_for_auto(folder: Path) -> None:
    run = RunDir(folder / "run")
    text = RECIPE.replace("base", str(folder / "base")).replace("micro_batch: 4", "micro_batch: auto")
    run.create("r", text)
    found = plan(run.path, [], Resources(nproc=2), "H200")
    assert found.settled is not None
    assert "the fastest by the plan that fits" in found.settled
    keep_batch(run, Batch(2, "off", "", 1, 2))
    found = plan(run.path, [], Resources(nproc=2), "H200")
    assert found.settled == "auto: train.micro_batch=2, as this run has settled it (batch.json)"
    with pytest.raises(UserError, match="64 is not a multiple of micro_batch 2 x 3 ranks"):
        plan(run.path, [], Resources(nproc=3), "H200")


def test_a_run_on_gpus_is_compared_with_what_torch_counts(folder: Path) -> None:
    run = made_run(folder)
    assert plan(run.path, [], Resources()).measured is None
    run.metrics.write_text(
        '{"attempt": 1, "worst_memory_bytes": 9e9, "worst_memory_reserved_bytes": 9e9}\n{"step": 2}\n'
        '{"attempt": 2, "worst_memory_bytes": 6e9, "worst_memory_reserved_bytes": 7e9}\n'
        '{"attempt": 2, "worst_memory_bytes": 5e9, "worst_memory_reserved_bytes": 7e9}\n'
    )
    found = plan(run.path, [], Resources(), "H200")
    assert found.measured == Measured(2, 6e9, 7e9)
    torch_counts = found.prediction.peak.total - found.prediction.peak.terms["CUDA"]
    allocated = torch_counts - found.prediction.peak.terms["lost by allocator"]
    [said] = compared(found.measured, found.prediction)
    assert said.startswith(
        f"measured on the worst rank of attempt 2: 5.6 GiB allocated, predicted {text_of(allocated)} "
    )
    assert f"6.5 GiB reserved, predicted {text_of(torch_counts)} (" in said
    [said] = compared(found.measured, plan(run.path, [], Resources()).prediction)
    assert said.endswith("to compare")


def test_a_run_is_compared_with_what_its_attempt_wrote_down(folder: Path) -> None:
    run = made_run(folder)
    written = replace(plan(run.path, [], Resources(nproc=2)).prediction, moments=(Moment("save", {"weights": 10**9}),))
    run.attempt_logs(3).mkdir()
    record.write(run.attempt_logs(3), written)
    run.metrics.write_text('{"attempt": 3, "worst_memory_bytes": 9e8, "worst_memory_peak_bytes": 2e9}\n')
    found = plan(run.path, [], Resources())
    assert found.prediction == written
    assert found.measured is not None
    assert list(compared(found.measured, found.prediction)) == [
        "measured on the worst rank of attempt 3: 1.9 GiB at most, predicted 954 MiB (+100%); "
        "858 MiB after steps, predicted 954 MiB (-10%)"
    ]
    assert plan(run.path, [], Resources(nodes=2)).prediction.world == 2  # another layout is asked about
    (run.attempt_logs(3) / record.FILE).write_text('{"world": 2}')
    found = plan(run.path, [], Resources())
    assert found.prediction.peak.total > 10**10  # another version's: predicted now


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


SITE = """\
nodes = 2
memory = "480G"
gpus = {count = 4, model = "a100_80gb"}
rates = {reached = 0.5, between_nodes = 12}
"""


def test_the_place_comes_from_the_site_unless_the_command_line_says_otherwise(folder: Path) -> None:
    (folder / "s.toml").write_text(SITE)
    found = json.loads(printed("r.yaml", "--site", "s.toml", "--json"))
    assert (found["world"], found["gpu"], found["node_memory"]) == (8, "A100-80GB", 480 << 30)
    half = json.loads(printed("r.yaml", "--gpu", "A100-80GB", "--nodes", "2", "--nproc", "4", "--json"))
    assert found["step_seconds"] != half["step_seconds"]
    other = plan(Path("r.yaml"), [], Resources(4, 2, site="s.toml"), "H200").prediction
    assert other.device is not None
    assert (other.world, other.device.name, other.device.reached) == (8, "H200-141GB", 0.5)  # the site's share stays
    assert half["node_memory"] is None  # that of this machine is no GPU node's
    taken = f"host memory: {text_of(found['host_node'])} of the 480.0 GiB that a job gets of a node, "
    assert taken in printed("r.yaml", "--site", "s.toml")
    with pytest.raises(UserError, match="--nproc: ranks 8 is more than the 4 GPUs of a node"):
        plan(Path("r.yaml"), [], Resources(nproc=8, site="s.toml"))


def test_a_site_that_does_not_name_its_gpu_is_asked_to(folder: Path) -> None:
    (folder / "s.toml").write_text('gpus = {count = 4, type = "a100"}\n')
    said = printed("r.yaml", "--site", "s.toml")
    assert "whether it fits is not known" in said
    assert "gpus.type a100 of the site profile may be one of A100-80GB, A100-40GB; write which as gpus.model" in said
    assert "CUDA" in said  # it is no CPU
    assert "write which" not in printed("r.yaml", "--site", "s.toml", "--gpu", "A100-40GB")


def test_a_run_names_the_rate_that_gives_what_was_measured(folder: Path) -> None:
    """`reached` from MFU, which recomputation adds to, and from tokens per second where there is no MFU."""
    (folder / "s.toml").write_text(SITE)
    run = RunDir(folder / "run")
    run.create("r", RECIPE.replace("base", f"{folder / 'base'}, activation_checkpointing: true"))
    resources = Resources(site="s.toml")
    expected = plan(run.path, [], resources).prediction
    assert expected.times is not None

    def said(share: float, seconds: float, **more: float) -> list[str]:
        rate = share * expected.step_tokens / seconds
        steps = [{"step": n, "loss": 1.0, "seconds": seconds if n > 3 else 99.0, "attempt": 2} for n in range(1, 30)]
        old = [{"step": 1, "loss": 1.0, "seconds": 77.0, "attempt": 1, "mfu": 0.9}] * 40
        lines = [*old, *({**step, "useful_tokens_per_s": rate, **more} for step in steps)]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        found = plan(run.path, [], resources)
        assert found.measured is not None
        return list(compared(found.measured, found.prediction))

    times = expected.times
    first, second = said(0.8, 1.6 * times.step)
    part = replace(times, computing=0.8 * times.computing)
    assert first == (
        f"measured: {1.6 * times.step:.3g} s a step (median of 26, rows 80% full), predicted {part.step:.3g} s for as "
        f"many tokens, {times.step:.3g} s for full rows"
    )
    sent = (1 - times.hidden) * times.sending
    line = "for [rates] in the site profile: reached = {:.2g}".format
    assert second == line(0.5 * part.computing / (1.6 * times.step - sent))
    seconds = times.computing / 0.5 + sent  # twice 0.5 of the FLOPs in it, by MFU, which leaves recomputation out
    assert said(0.8, seconds, mfu=expected.useful * times.at_peak / seconds)[1] == line(0.5 * 0.5)
    assert 0.5 < expected.useful < 0.8  # two of three passes, with attention's more
    assert len(said(0.8, 0.01 * times.step)) == 1  # more than the GPU's peak: the GPU is another


def test_where_links_decide_their_rate_is_named(folder: Path) -> None:
    (folder / "s.toml").write_text(SITE.replace("12", "0.001"))
    run = RunDir(folder / "run")
    run.create("r", RECIPE.replace("base", str(folder / "base")))
    expected = plan(run.path, [], Resources(site="s.toml")).prediction
    assert expected.times is not None
    assert expected.times.between > 2 * expected.times.computing
    # of almost empty rows, which compute nothing: as if it were a quarter
    seconds = expected.times.between / 4 + expected.times.within
    run.metrics.write_text(f'{{"step": 1, "loss": 1, "seconds": {seconds}, "useful_tokens_per_s": 9}}\n' * 9)
    found = plan(run.path, [], Resources(site="s.toml"))
    assert found.measured is not None
    assert (
        list(compared(found.measured, found.prediction))[1] == "for [rates] in the site profile: between_nodes = 0.004"
    )


def test_a_run_whose_job_has_no_profile_any_more_is_planned_all_the_same(folder: Path) -> None:
    run = RunDir(folder / "run")
    run.create("r", RECIPE.replace("base", str(folder / "base")))
    record = run.read()
    record.launcher = "slurm"
    run.write(record)
    (run.path / "slurm").mkdir()
    sent = {"job": "1", "site": "/gone/s.toml", "nodes": 1, "time": "1", "submitted": 1.0}
    (run.path / "slurm" / "jobs.json").write_text(json.dumps([sent]))
    found = plan(run.path, [], Resources(), "H200")
    assert found.prediction.room is not None
    assert found.unknown == ()
    [sentence] = plan(run.path, [], Resources()).unknown
    assert "no site profile '/gone/s.toml'" in sentence
    (folder / "s.toml").write_text(SITE)
    (run.path / "slurm" / "jobs.json").write_text(json.dumps([sent | {"site": str(folder / "s.toml")}]))
    assert plan(run.path, [], Resources()).prediction.world == 8
    with pytest.raises(UserError, match="no site profile 'nowhere'"):
        plan(run.path, [], Resources(site="nowhere"))
