"""What happens around the ranks: sizes, the run folder, who is to blame, and what is shown of a run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from distft.engine.lr_schedule import learning_rate
from distft.errors import DONE, FAILED, PREEMPTED, USAGE, UserError
from distft.launcher import Job, Mode, Resources
from distft.process import console
from distft.recipe.load import check_sizes, load_resolved
from distft.recipe.schema import Train
from distft.run import chart, lease, tracking
from distft.run.folder import Attempt, Run, RunDir
from launchers.attempt import Verdict, begin, close
from launchers.forkserver import Rank
from launchers.local import LocalLauncher, settle_recipe
from launchers.parent import blame, killed_for_memory, verdict
from tests.unit.full_disk import fill
from tests.unit.recipes import recipe


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    settle_recipe(made, recipe())
    return made


def attempt(number: int = 1) -> Attempt:
    return Attempt(number=number, hosts=["node7"], pid=4321, world_size=2, zero_stage=2, start=1_700_000_000.0)


# --- sizes and devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "micro", "world", "near"), [(8, 4, 4, "16"), (24, 4, 4, "16 or 32"), (4, 2, 3, "6")])
def test_sizes_that_do_not_divide_name_the_nearest(batch: int, micro: int, world: int, near: str) -> None:
    wanted = recipe(train={"steps": 5, "global_batch": batch, "micro_batch": micro})
    with pytest.raises(UserError) as caught:
        check_sizes(wanted, world)
    assert str(caught.value) == (
        f"train.global_batch {batch} is not a multiple of micro_batch {micro} x {world} ranks; "
        f"nearest that fit: train.global_batch={near}"
    )
    for fit in near.split(" or "):
        check_sizes(recipe(train={"steps": 5, "global_batch": int(fit), "micro_batch": micro}), world)


def test_wrong_sizes_leave_nothing_behind(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", recipe(train={"steps": 5, "global_batch": 4}), Resources(nproc=3))
    with pytest.raises(UserError, match=r"global_batch=12$"):
        LocalLauncher().launch(job)
    assert not RunDir(job.run_dir).exists()


def test_a_finished_run_is_left_alone(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.write(Run("x", state="done"))
    assert LocalLauncher().launch(Job(run.path, None, Resources(nproc=1))) == DONE
    assert capsys.readouterr().out == f"{run.path} is finished; nothing to do\n"
    assert run.read().attempts == []


@pytest.mark.parametrize(
    ("asked", "mode", "told"),
    [
        (Resources(nodes=2, site="s"), "run", "--nodes, --site"),
        (Resources(time="1", after=Path("x")), "run", "--time, --after"),
        (Resources(nproc=1, max_restarts=2), "show", "--dry-run"),
        (Resources(), "check", "--check"),
    ],
)
def test_this_machine_does_nothing_that_needs_a_scheduler(
    tmp_path: Path, asked: Resources, mode: Mode, told: str
) -> None:
    with pytest.raises(UserError, match=rf"^{told}: the launcher 'local' runs on this machine and submits no job"):
        LocalLauncher().launch(Job(tmp_path / "run", recipe(), asked, mode))
    assert not (tmp_path / "run").exists()


def test_no_recipe_and_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run; give a recipe"):
        LocalLauncher().launch(Job(tmp_path / "run"))


# --- blame ------------------------------------------------------------------------------------------------------------


def left(number: int, code: int) -> Rank:
    return Rank(f"rank {number}", Path("log"), pid=1, code=code, number=number)


@pytest.mark.parametrize(("code", "ran_out"), [(-9, True), (-9, False), (-11, True)])
def test_a_rank_that_the_kernel_may_have_killed_for_memory_says_so(code: int, ran_out: bool) -> None:
    cause = verdict(left(1, code), ran_out).cause
    assert cause.startswith(f"rank 1 was killed by {'SIGKILL' if code == -9 else 'SIGSEGV'}")
    assert ("lack of host memory" in cause) == (code == -9 and ran_out)


def test_the_kernel_counts_whom_it_kills_for_memory(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 17\noom_kill_other 3\n")
    assert killed_for_memory(tmp_path / "vmstat") == 17
    assert killed_for_memory(tmp_path / "nothing") == 0


def test_of_ranks_that_left_together_the_cause_comes_first() -> None:
    codes = [DONE, 134, FAILED, PREEMPTED, USAGE, -9]
    ranks = [left(number, code) for number, code in enumerate(codes)]
    assert [rank.code for rank in sorted(ranks, key=blame)] == [-9, USAGE, PREEMPTED, FAILED, 134, DONE]


# --- the recipe of a run folder ---------------------------------------------------------------------------------------


def test_a_new_folder_gets_the_recipe(run: RunDir) -> None:
    assert load_resolved(run.config) == recipe()
    assert (run.read().name, run.read().state) == ("x", "new")
    assert run.logs.is_dir()
    assert run.checkpoints.is_dir()


def test_the_same_recipe_or_none_changes_nothing(run: RunDir) -> None:
    before = run.config.stat()
    assert settle_recipe(run, recipe()) == settle_recipe(run, None) == recipe()
    after = run.config.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_what_leaves_the_result_alone_may_change(saved: RunDir) -> None:
    run = saved
    wanted = recipe(engine={"zero_stage": 3}, checkpoint={"every": 7})
    assert settle_recipe(run, wanted) == wanted == load_resolved(run.config)


@pytest.fixture
def saved(run: RunDir) -> RunDir:
    """A run with a checkpoint."""
    (run.checkpoints / "step-00000002").mkdir()
    return run


def test_before_its_first_checkpoint_a_run_takes_a_corrected_recipe(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run.read()
    run.attempt_logs(1).mkdir(parents=True)
    run.write(dataclasses.replace(before, state="failed", attempts=[attempt()]))
    run.base.mkdir()
    made = [run.labels, run.reference, run.chart]
    (run.path / "tensorboard").mkdir()
    for path in [*made, run.metrics]:
        path.write_text("{}\n")
    wanted = recipe(data={"train": "/corrected"}, train={"steps": 6})
    assert settle_recipe(run, wanted) == wanted == load_resolved(run.config)
    said = capsys.readouterr().out
    assert said == (
        f"{run.path} has no checkpoint yet, so it starts over with the new recipe; changed: data.train, train.steps\n"
    )
    assert not run.base.exists()
    assert not (run.path / "tensorboard").exists()
    assert not any(path.exists() for path in made)
    assert not run.metrics.exists()
    assert (run.attempt_logs(1) / "metrics.jsonl").read_text() == "{}\n"  # nothing that was recorded is lost
    assert run.read().wandb_id != before.wandb_id
    assert settle_recipe(run, wanted) == wanted
    assert capsys.readouterr().out == ""


def test_what_leaves_the_losses_alone_makes_nothing_again(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.base.mkdir()
    run.metrics.write_text("{}\n")
    before = run.read()
    wanted = recipe(checkpoint={"every": 7}, data={"train": "/d", "eval": "/e"})
    assert settle_recipe(run, wanted) == wanted == load_resolved(run.config)
    assert run.base.exists()
    assert run.metrics.exists()
    assert run.read() == before
    assert capsys.readouterr().out == ""


def test_a_batch_script_replaces_no_recipe_of_an_attempt_at_work(run: RunDir) -> None:
    other = Job(run.path, recipe(train={"steps": 6}), mode="prepare")
    harmless = Job(run.path, recipe(checkpoint={"every": 7}), mode="prepare")
    run.base.mkdir()
    with lease.hold_run(run) as held:
        with pytest.raises(UserError, match=rf"is in use by process {held.lease.pid} on .*; stop it before you change"):
            LocalLauncher().launch(other)
        assert (load_resolved(run.config), run.base.exists()) == (recipe(), True)
        assert LocalLauncher().launch(harmless) == DONE
    assert LocalLauncher().launch(other) == DONE
    assert load_resolved(run.config) == other.recipe


def test_another_recipe_is_refused_and_shown(saved: RunDir) -> None:
    run = saved
    before = run.config.read_bytes()
    with pytest.raises(UserError) as caught:
        settle_recipe(run, recipe(train={"steps": 6}, engine={"zero_stage": 1}))
    first, *rest = str(caught.value).splitlines()
    assert first == (f"{run.path} holds a run of another recipe; add --allow train.steps, or use the same values:")
    assert rest == [
        "  needs --allow: train.steps: 5 before, 6 now",
        "  harmless or allowed: engine.zero_stage: 2 before, 1 now",
    ]
    assert run.config.read_bytes() == before


def test_a_run_begun_under_an_earlier_default_goes_on_under_it(saved: RunDir) -> None:
    run = saved
    old = run.config.read_text()
    run.config.write_text(old.replace("  grad_dtype: fp32\n", ""))
    assert "grad_dtype" in old
    assert "grad_dtype" not in run.config.read_text()
    assert settle_recipe(run, recipe()).engine.grad_dtype == "bf16"
    assert settle_recipe(run, recipe(engine={"zero_stage": 1})).engine.grad_dtype == "bf16"
    assert load_resolved(run.config).engine.grad_dtype == "bf16"
    with pytest.raises(UserError, match=r"add --allow engine\.grad_dtype"):
        settle_recipe(run, recipe(engine={"grad_dtype": "fp32"}))


def test_a_finished_run_with_more_steps_is_not_finished(saved: RunDir) -> None:
    run = saved
    run.write(Run("x", state="done"))
    settle_recipe(run, recipe(engine={"zero_stage": 1}))
    assert run.read().state == "done"
    wanted = recipe(train={"steps": 6}, engine={"zero_stage": 1})
    assert settle_recipe(run, wanted, frozenset({"train.steps"})) == wanted == load_resolved(run.config)
    assert run.read().state == "new"


# --- run.json, the lock, metrics.jsonl --------------------------------------------------------------------------------


def test_a_run_folder_is_named_without_dots_and_with_its_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "inside").mkdir(parents=True)
    (tmp_path / "home").symlink_to("real")  # as /home may be
    (tmp_path / "far").symlink_to("real/inside")
    assert RunDir(tmp_path / "home" / "here" / ".." / "x").path == tmp_path / "home" / "x"
    assert RunDir(tmp_path / "far" / ".." / "x").path == tmp_path / "real" / "x"  # and not beside the link
    monkeypatch.chdir(tmp_path / "real" / "inside")
    run = RunDir(Path("../x"))
    run.create("x", "")
    (tmp_path / "real" / "inside").rmdir()
    assert run.read().name == "x"


def test_run_json_reads_back(run: RunDir) -> None:
    content = Run("x", state="running", attempts=[attempt(), attempt(2)])
    run.write(content)
    assert run.read() == content
    assert [path.name for path in run.path.glob(".*")] == []


@pytest.mark.parametrize("content", [b"", b"{", b"3", b"null", b"[]", b"{}", b'{"attempts": []}', b"\xff", b'"x"'])
def test_a_broken_run_json_is_one_sentence(run: RunDir, content: bytes) -> None:
    run.json.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json is damaged \(.*\); restore it from a copy$") as caught:
        run.read()
    assert "\n" not in str(caught.value)


def test_no_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run: it has no run\.json"):
        RunDir(tmp_path).read()


def test_a_line_cut_off_by_a_crash_is_passed_over_and_closed(run: RunDir) -> None:
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [record["step"] for record in run.records()] == [1]
    local = tracking.Jsonl(run.metrics)
    local.log({"step": 2, "loss": 1.5})
    local.finish()
    assert [record["step"] for record in run.records()] == [1, 2]
    tracking.Jsonl(run.metrics).finish()
    assert run.metrics.read_text().count("\n") == 3  # a whole line is left alone


def test_an_attempt_whose_parent_was_killed_is_closed_by_the_next(run: RunDir) -> None:
    record = Run("x", state="running", attempts=[attempt()])
    with lease.hold_run(run, job="12", restart=3) as held:
        begin(run, record, recipe(), held, ["node7", "node8"], world=4)
    first, second = run.read().attempts
    assert (first.cause, first.exit_code, first.end) == ("killed", FAILED, first.start)
    assert (second.number, second.end, second.pid, second.hosts) == (2, None, os.getpid(), ["node7", "node8"])
    assert (second.job, second.restart, second.world_size) == ("12", 3, 4)
    assert run.attempt_logs(2).is_dir()


def test_an_attempt_makes_the_room_for_its_last_words_again(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.reserve.unlink()
    with lease.hold_run(run) as held:
        begin(run, run.read(), recipe(), held, [], world=1)
        assert run.reserve.exists()
        run.reserve.unlink()
        fill(run.path, monkeypatch, free=4)
        begin(run, run.read(), recipe(), held, [], world=1)  # without room for it
    assert not run.reserve.exists()
    assert len(run.read().attempts) == 2


def test_an_attempt_knows_its_steps(run: RunDir) -> None:
    run.metrics.write_text(
        "".join(json.dumps({"step": n, "loss": 1.0, "attempt": 1 + n // 3}) + "\n" for n in range(1, 6))
    )
    ended = attempt(2)
    close(run, ended, Verdict(DONE, "finished"), end=1.0)
    assert (ended.first_step, ended.last_step, ended.exit_code) == (3, 5, DONE)


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_learning_rate(schedule: Any, rates: list[float]) -> None:
    train = Train(steps=6, lr=2.0, warmup=2, schedule=schedule)
    got = [learning_rate(train, step, 6) for step in range(1, 7)]
    assert got == pytest.approx([2.0 * rate for rate in rates])
    assert learning_rate(Train(steps=1, lr=2.0, schedule=schedule), 1, 1) == 2.0


def test_chart_of_two_attempts_is_a_picture(run: RunDir) -> None:
    chart.draw_chart(run)
    assert not run.chart.exists()  # nothing recorded yet
    records: list[dict[str, Any]] = [{"step": n, "loss": 3.0 / n, "attempt": 1 + n // 4} for n in range(1, 7)]
    records += [{"step": n, "eval_loss": 4.0 - n / 6, "attempt": 1 + n // 4} for n in (0, 6)]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    chart.draw_chart(run)
    content = run.chart.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert len(content) > 10_000
    assert not list(run.path.glob(".*"))


def test_plain_lines_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: seconds[0])
    monkeypatch.setenv("DISTFT_CONSOLE_FD", str(os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY, 0o600)))
    shown = console.Console(first=True)
    with shown.bar("step", total=50) as bar:
        for done in range(1, 51):
            bar.at(done, "loss [1]")
            seconds[0] += 1.0
    shown._rich.file.close()
    lines = (tmp_path / "out").read_text().splitlines()
    assert [line.split(" ")[1] for line in lines] == ["1/50", "11/50", "21/50", "31/50", "41/50", "50/50"]
    assert lines[0] == "step 1/50 · loss [1]"
    assert lines[1] == "step 11/50 · loss [1] · ETA 0:39"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723.2, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text
