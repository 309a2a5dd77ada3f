"""Trackers beside metrics.jsonl: what they do wrong changes nothing, and TensorBoard shows one curve."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.run import tracking
from distft.run.folder import RunDir
from distft.run.records import MetricsRecord, latest
from distft.run.tensorboard_tracker import TensorBoardTracker
from distft.run.tracking import All, InBackground, Jsonl, check, trackers

EventAccumulator: Any = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason="needs distft[tensorboard]"
).EventAccumulator

TRACKER = """\
class Csv:
    def __init__(self, recipe, run):
        self._file = open(run.path / f"{recipe.name}.csv", "a")

    def log(self, record):
        print(record["step"], record["loss"], sep=",", file=self._file)

    def finish(self):
        self._file.close()
"""


def recipe(**track: Any) -> Recipe:
    base = {"name": "x", "model": {"path": "/m"}, "data": {"train": "/d"}, "train": {"steps": 5}}
    return Recipe.model_validate(base | {"track": track})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create("x", "")
    return made


def trained(step: int, loss: float, attempt: int = 1) -> MetricsRecord:
    return {"step": step, "loss": loss, "lr": 1e-4, "attempt": attempt}


class Kept:
    """A tracker that keeps records, after `wait`; it raises at step `fails`, or when it is made if that is 0."""

    def __init__(self, fails: int = -1, wait: Callable[[], object] = lambda: None) -> None:
        if fails == 0:
            raise OSError("no such host")
        self.records: list[MetricsRecord] = []
        self.finished = False
        self._fails, self._wait = fails, wait

    def log(self, record: MetricsRecord) -> None:
        self._wait()
        if record["step"] == self._fails:
            raise SystemExit("out of quota")
        self.records.append(record)

    def finish(self) -> None:
        self.finished = True


# --- in the background ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fails", "why"), [(0, "no such host"), (2, "out of quota")])
def test_a_tracker_that_raises_is_given_up_and_changes_nothing(
    run: RunDir, capsys: pytest.CaptureFixture[str], fails: int, why: str
) -> None:
    other = Kept()
    track = All(Jsonl(run.metrics), [InBackground("Broken", lambda: Kept(fails)), InBackground("Other", lambda: other)])
    for step in range(1, 5):
        track.log(trained(step, 1.0))
        time.sleep(0.01)
    track.finish()
    assert [record["step"] for record in run.records()] == [1, 2, 3, 4]
    assert other.records == list(run.records())
    assert other.finished
    said = f"Broken is given up for this attempt ({why}); metrics.jsonl has everything\n"
    assert capsys.readouterr().out == said


def test_slow_trackers_hold_up_neither_a_step_nor_the_end(
    run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end waits for all together as long as for one."""
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.5)
    released = threading.Event()
    slow = [InBackground(f"Slow {n}", lambda: Kept(wait=lambda: released.wait(60.0))) for n in range(4)]
    track = All(Jsonl(run.metrics), slow)
    started = time.monotonic()
    for step in range(1, 101):
        track.log(trained(step, 1.0))
    assert len(list(run.records())) == 100
    track.finish()
    assert time.monotonic() - started < 1.5
    released.set()
    said = capsys.readouterr().out
    assert said.count("is given up for this attempt (it did not take everything in time)") == 4


def test_ranks_other_than_0_record_nothing(run: RunDir) -> None:
    track = trackers(recipe(tensorboard=True), run, first=False)
    track.log(trained(1, 1.0))
    track.finish()
    assert not run.metrics.exists()
    assert not (run.path / "tensorboard").exists()


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def curves(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each tag, as TensorBoard reads them."""
    read = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def record(run: RunDir, *records: MetricsRecord) -> None:
    """An attempt that logs these."""
    track = trackers(recipe(tensorboard=True), run, first=True)
    for one in records:
        track.log(one)
    track.finish()


def full_files(run: RunDir) -> list[Path]:
    return [file for file in (run.path / "tensorboard").iterdir() if file.stat().st_size]


def test_tensorboard_has_each_number_of_each_record(run: RunDir) -> None:
    samples = {"step": 2, "non_finite": "the loss of step 2 is nan", "samples": [3], "action": "skip", "attempt": 1}
    saved = {"step": 2, "save_seconds": 0.25, "stall_seconds": 0.125, "attempt": 1}
    record(run, {**trained(1, 3.0), "loss.tokens": 3.0}, samples, trained(3, 2.0), saved, {"step": 3, "eval_loss": 4.0})
    assert curves(run) == {
        "loss": [(1, 3.0), (3, 2.0)],
        "loss.tokens": [(1, 3.0)],
        "lr": [(1, pytest.approx(1e-4)), (3, pytest.approx(1e-4))],
        "save_seconds": [(2, 0.25)],
        "stall_seconds": [(2, 0.125)],
        "eval_loss": [(3, 4.0)],
    }


def test_attempts_that_repeat_steps_are_one_curve(run: RunDir) -> None:
    """Killed three steps after the checkpoint of step 2; then before its first step; the third attempt goes to 4."""
    evaluated = {"step": 2, "eval_loss": 7.0, "attempt": 1}
    record(run, trained(1, 3.0), trained(2, 2.0), evaluated, trained(3, 1.0), trained(4, 0.5), trained(5, 0.25))
    with open(run.metrics, "a") as file:
        file.write('{"step": 6, "lo')  # cut off by the crash
    record(run)
    assert curves(run)["loss"] == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5), (5, 0.25)]
    record(run, {**evaluated, "eval_loss": 6.0}, trained(3, 1.5, 3), trained(4, 0.75, 3))
    assert curves(run)["loss"] == [(1, 3.0), (2, 2.0), (3, 1.5), (4, 0.75)]
    assert curves(run)["eval_loss"] == [(2, 6.0)]
    assert len(full_files(run)) == 1


def test_a_rollback_within_an_attempt_is_one_curve(run: RunDir) -> None:
    broken = {"step": 4, "non_finite": "the loss of step 4 is nan", "samples": [], "action": "rollback"}
    before = [trained(1, 4.0), trained(2, 3.0), trained(3, 2.0), {"step": 3, "eval_loss": 9.0}, broken]
    record(run, *before, trained(2, 3.5), trained(3, 2.5), trained(4, 1.0))
    assert curves(run)["loss"] == [(1, 4.0), (2, 3.5), (3, 2.5), (4, 1.0)]
    assert "eval_loss" not in curves(run)  # until it is evaluated again


def test_a_tensorboard_that_is_open_follows_the_curve(run: RunDir) -> None:
    """Its reader without the data server looks for ever at a file that was removed."""
    record(run, trained(1, 4.0), trained(2, 3.0), trained(3, 2.0))
    reader = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    assert [point.step for point in reader.Reload().Scalars("loss")] == [1, 2, 3]
    record(run, trained(3, 2.5), trained(4, 1.0))
    assert [(point.step, point.value) for point in reader.Reload().Scalars("loss")] == curves(run)["loss"]
    record(run, trained(4, 1.5), trained(5, 0.5), trained(4, 1.25))
    assert [(point.step, point.value) for point in reader.Reload().Scalars("loss")] == curves(run)["loss"]


def test_an_event_file_of_before_is_void_if_a_kill_left_it(run: RunDir) -> None:
    record(run, trained(1, 3.0), trained(2, 2.0))
    [old] = (run.path / "tensorboard").iterdir()
    content = old.read_bytes()
    record(run, trained(2, 1.0))
    old.write_bytes(content)
    assert len(full_files(run)) == 2
    assert curves(run)["loss"] == [(1, 3.0), (2, 1.0)]
    record(run)
    assert len(full_files(run)) == 1


def test_a_run_that_began_without_tensorboard_gets_its_past(run: RunDir) -> None:
    run.metrics.write_text("".join(json.dumps({**trained(s, 1.0 / s), "time": 1.0}) + "\n" for s in (1, 2)))
    record(run, trained(3, 8.0))
    assert curves(run)["loss"] == [(1, 1.0), (2, 0.5), (3, 8.0)]


def test_records_that_wait_in_the_queue_are_appended(run: RunDir) -> None:
    """They are in metrics.jsonl already when the thread begins; a file made anew for each would never keep up."""
    waiting = [{**trained(step, 1.0), "time": 1.0} for step in (1, 2, 3)]
    run.metrics.write_text("".join(json.dumps(one) + "\n" for one in waiting))
    track = TensorBoardTracker(run, lines=1)
    [file] = (run.path / "tensorboard").iterdir()
    for one in waiting[1:]:
        track.log(one)
    track.finish()
    assert list((run.path / "tensorboard").iterdir()) == [file]
    assert curves(run)["loss"] == [(1, 1.0), (2, 1.0), (3, 1.0)]


def test_latest_keeps_of_each_step_what_counts() -> None:
    lost, saved = {"step": 5, "eval_loss": 1.0}, {"step": 2, "save_seconds": 1.0}
    found = latest([trained(1, 3.0), trained(4, 2.0), lost, saved, trained(3, 1.0), trained(4, 0.5)])
    assert found == [trained(1, 3.0), saved, trained(3, 1.0), trained(4, 0.5)]


def test_a_library_that_is_not_there_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check(recipe())
    with pytest.raises(UserError, match=r"^track.tensorboard: the library tensorboard is not installed; install"):
        check(recipe(tensorboard=True))


# --- trackers of other packages ---------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a tracker, and one that cannot be imported."""
    about = tmp_path / "site" / "csv_tracker-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: csv-tracker\nVersion: 1.0\n")
    points = "[distft.trackers]\ncsv = csv_tracker_of_a_test:Csv\nbroken = no_such_module_of_a_test:Csv\n"
    (about / "entry_points.txt").write_text(points)
    (about.parent / "csv_tracker_of_a_test.py").write_text(TRACKER)
    monkeypatch.syspath_prepend(about.parent)


@pytest.mark.usefixtures("package")
def test_a_tracker_of_another_package(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = recipe(others=["csv", "broken"])
    check(wanted)
    track = trackers(wanted, run, first=True)
    track.log(trained(1, 3.0))
    track.log(trained(2, 2.0))
    track.finish()
    assert (run.path / "x.csv").read_text() == "1,3.0\n2,2.0\n"
    assert "broken is given up for this attempt (the tracker 'broken' of the package csv-tracker cannot be loaded" in (
        capsys.readouterr().out
    )


@pytest.mark.usefixtures("package")
def test_an_unknown_tracker_is_told_before_training() -> None:
    with pytest.raises(
        UserError, match=r"^track.others: no tracker is called 'cvs'; did you mean csv\? installed: broken, csv$"
    ):
        check(recipe(others=["csv", "cvs"]))
