"""What `distft status` makes of SLURM's answers, and how often it asks. squeue and sacct are small scripts here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distft.commands import status, status_view
from distft.commands.status import Status
from distft.run import lease
from distft.run.folder import Attempt, Run, RunDir
from distft.run.lease import Lease
from launchers.local import settle_recipe
from launchers.slurm import scheduler
from tests.unit.recipes import recipe


class Slurm:
    """Commands of SLURM that write down each call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def says(self, command: str, text: str) -> None:
        (self.folder / f"{command}.out").write_text(text)
        self._does(command, f"cat {self.folder}/{command}.out")

    def fails(self, command: str) -> None:
        self._does(command, "exit 1")

    def hangs(self, command: str) -> None:
        self._does(command, "exec sleep 60")

    def calls(self, command: str) -> list[str]:
        path = self.folder / f"{command}.calls"
        return path.read_text().splitlines() if path.exists() else []

    def _does(self, command: str, line: str) -> None:
        (self.folder / command).write_text(f'#!/bin/sh\necho "$*" >> {self.folder}/{command}.calls\n{line}\n')
        (self.folder / command).chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """On it, nothing is known of any job."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(scheduler, "ANSWER_SECONDS", 5.0)
    made = Slurm(folder)
    made.says("squeue", "")
    made.says("sacct", "")
    return made


def sent(path: Path, job: str, **values: object) -> RunDir:
    """A run whose job was sent from here."""
    run = RunDir(path)
    settle_recipe(run, recipe())
    (run.path / "slurm").mkdir()
    entry = {"job": job, "site": "s.toml", "nodes": 2, "time": "30", "submitted": 1.0}
    (run.path / "slurm" / "jobs.json").write_text(json.dumps([entry]))
    run.write(Run(**{"name": "x", "launcher": "slurm", **values}))  # type: ignore[arg-type]
    return run


def attempt(job: str, **values: object) -> Attempt:
    known = {"number": 1, "hosts": ["node1"], "pid": 1, "world_size": 2, "zero_stage": 2, "start": 1000.0}
    return Attempt(**{**known, "job": job, **values})  # type: ignore[arg-type]


def seen(run: RunDir) -> Status:
    [found], _ = status.all_statuses([run.path])
    return found


def shown(run: RunDir, capsys: pytest.CaptureFixture[str]) -> str:
    status_view.show([seen(run)], [run.path], details=False)
    return capsys.readouterr().out


# --- how often it asks ------------------------------------------------------------------------------------------------


def test_slurm_is_asked_once_for_all_runs(tmp_path: Path, slurm: Slurm) -> None:
    for number in range(10, 20):
        sent(tmp_path / "runs" / str(number), str(number))
    for number in range(20, 30):
        sent(tmp_path / "runs" / str(number), str(number), state="running", attempts=[attempt(str(number))])
    slurm.says("squeue", "".join(f"{number}|PENDING|Priority|N/A|\n" for number in range(10, 20)))
    slurm.says("sacct", "".join(f"{number}|NODE_FAIL|1000|1100|node1\n" for number in range(20, 30)))
    statuses, broken = status.all_statuses([tmp_path / "runs"])
    assert broken == []
    assert [found.state for found in statuses] == ["queued"] * 10 + ["lost"] * 10
    assert [found.attempts[0].cause for found in statuses[10:]] == ["node failure"] * 10
    assert len(slurm.calls("squeue")) == 1
    [call] = slurm.calls("sacct")
    assert sorted(call.split("--jobs ")[1].split(",")) == [str(number) for number in range(20, 30)]


def test_accounting_is_not_asked_about_what_the_queue_knows(tmp_path: Path, slurm: Slurm) -> None:
    run = sent(tmp_path / "run", "7")
    slurm.says("squeue", "7|PENDING|Priority|N/A|\n")
    assert seen(run).state == "queued"
    assert slurm.calls("sacct") == []


@pytest.mark.parametrize("command", ["squeue", "sacct"])
def test_a_command_that_hangs_is_waited_for_once_and_the_table_is_shown(
    tmp_path: Path,
    slurm: Slurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    monkeypatch.setattr(scheduler, "ANSWER_SECONDS", 0.3)
    folders = [sent(tmp_path / "runs" / str(number), str(number)).path for number in range(10, 20)]
    slurm.hangs(command)
    statuses, _ = status.all_statuses(folders)
    status_view.show(statuses, folders, details=False)
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 10
    if command == "squeue":
        assert all(f"{number} SLURM does not answer" in line for number, line in enumerate(lines, 10))
    assert sum(len(slurm.calls(name)) for name in ("squeue", "sacct")) == (1 if command == "squeue" else 2)


def test_a_run_with_damaged_jobs_hides_nothing_of_the_others(tmp_path: Path, slurm: Slurm) -> None:
    first, second = (sent(tmp_path / "runs" / job, job) for job in ("7", "8"))
    (first.path / "slurm" / "jobs.json").write_text("{")
    slurm.says("squeue", "8|PENDING|Priority|N/A|\n")
    damaged, whole = status.all_statuses([tmp_path / "runs"])[0]
    assert damaged.job is not None
    assert "jobs.json is damaged" in damaged.job.detail
    assert (whole.run_dir, whole.state) == (str(second.path), "queued")


def test_a_job_of_another_scheduler_is_none_of_slurms(tmp_path: Path, slurm: Slurm) -> None:
    run = sent(tmp_path / "run", "7", state="failed", attempts=[attempt("pod-a", cause="killed", end=1100.0)])
    slurm.says("squeue", "7|PENDING|Priority|N/A|\n")
    assert seen(run).state == "queued"
    assert slurm.calls("sacct") == []


# --- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("squeue", "alive", "job", "state"),
    [
        ("RUNNING|None|1700000000|node1", True, "running", "running"),
        ("RESIZING|None|1700000000|node1", True, "running", "running"),
        ("RUNNING|None|1700000000|node1", False, "running", "starting"),
        ("CONFIGURING|None|1700000000|node1", False, "starting", "starting"),
        ("SUSPENDED|None|1700000000|node1", False, "suspended", "suspended"),
        ("COMPLETING|None|1700000000|node1", True, "ending", "ending"),
        ("STAGE_OUT|None|1700000000|node1", False, "ending", "ending"),
        ("PENDING|Priority|N/A|", False, "pending", "queued"),
        ("PENDING|QOSUsageThreshold|N/A|", False, "pending", "queued"),
        ("PENDING|JobHeldUser|N/A|", False, "held", "queued"),
        ("PENDING|launch_failed_requeued_held|N/A|", False, "held", "queued"),
        ("REQUEUED|None|N/A|", False, "pending", "queued"),
        ("REQUEUE_HOLD|None|N/A|", False, "held", "queued"),
        ("SPECIAL_EXIT|None|N/A|", False, "held", "queued"),
        ("PENDING|DependencyNeverSatisfied|N/A|", False, "blocked", "blocked"),
    ],
)
def test_each_state_of_a_job_has_its_word(
    tmp_path: Path, slurm: Slurm, squeue: str, alive: bool, job: str, state: str
) -> None:
    run = sent(tmp_path / "run", "7", state="running", attempts=[attempt("7")])
    if alive:
        lease._write(run, Lease(host="node3", pid=1, job="7"))
    slurm.says("squeue", f"7|{squeue}\n")
    found = seen(run)
    assert found.job is not None
    assert (found.job.state, found.state) == (job, state)


@pytest.mark.parametrize(
    ("squeue", "said"),
    [
        ("PENDING|JobHeldUser", "held in SLURM (JobHeldUser); you can release it: scontrol release 7"),
        ("PENDING|JobHeldAdmin", "held in SLURM (JobHeldAdmin); an administrator can release it: scontrol release 7"),
        ("REQUEUE_HOLD|None", "held in SLURM (requeue_hold); you can release it: scontrol release 7"),
    ],
)
def test_a_job_held_in_slurm_says_how_it_is_released(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str], squeue: str, said: str
) -> None:
    run = sent(tmp_path / "run", "7")
    slurm.says("squeue", f"7|{squeue}|N/A|\n")
    assert f"job 7: held, {said}\n" in shown(run, capsys)


def test_a_dependency_that_is_never_satisfied_says_what_to_do(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sent(tmp_path / "run", "7")
    slurm.says("squeue", "7|PENDING|DependencyNeverSatisfied|N/A|\n")
    said = "the run that it waits for was cancelled or failed; cancel it and resume: "
    assert f"{said}distft cancel {run.path}; distft resume {run.path}\n" in shown(run, capsys)


def test_the_reason_of_a_hold_is_shown_while_it_is_held_only(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sent(tmp_path / "run", "7", state="held", reason="3 attempts in a row committed nothing")
    assert "\nheld: 3 attempts in a row committed nothing\n" in shown(run, capsys)
    slurm.says("squeue", "7|PENDING|Priority|N/A|\n")  # resumed
    assert seen(run).reason is None
    assert "held" not in shown(run, capsys)
    record = run.read()
    record.state = "failed"
    run.write(record)
    slurm.says("squeue", "")
    assert "held" not in shown(run, capsys)


# --- somebody else's runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def colleagues(tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run that goes on as job 7. Who looks at it is another user, numbered 4242."""
    run = sent(tmp_path / "run", "7", state="running", attempts=[attempt("7")])
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    return run


def test_the_queue_is_asked_for_the_jobs_of_all_owners_at_once(
    tmp_path: Path, slurm: Slurm, colleagues: RunDir
) -> None:
    sent(tmp_path / "other", "8")
    slurm.says("squeue", "7|RUNNING|None|1700000000|node1\n")
    status.all_statuses([colleagues.path, tmp_path / "other"])
    [call] = slurm.calls("squeue")
    [users] = [word.removeprefix("--user=") for word in call.split() if word.startswith("--user=")]
    assert set(users.split(",")) == {"4242", str(colleagues.json.stat().st_uid)}


@pytest.mark.parametrize("sacct", ["", "7|RUNNING|1000|Unknown|node1\n"])
@pytest.mark.parametrize(("alive", "state"), [(True, "running"), (False, "unknown")])
def test_what_slurm_does_not_show_of_a_colleagues_run_is_unknown(
    slurm: Slurm, colleagues: RunDir, capsys: pytest.CaptureFixture[str], sacct: str, alive: bool, state: str
) -> None:
    if alive:
        lease._write(colleagues, Lease(host="node3", pid=1, job="7"))
    slurm.says("sacct", sacct)
    assert seen(colleagues).state == state
    said = shown(colleagues, capsys)
    assert "unknown, SLURM does not show you this job of " in said
    assert "resume" not in said


def test_what_accounting_knows_of_a_colleagues_run_is_said(slurm: Slurm, colleagues: RunDir) -> None:
    slurm.says("sacct", "7|NODE_FAIL|1000|1100|node1\n")
    found = seen(colleagues)
    assert found.job is not None
    assert (found.state, found.job.state, found.attempts[0].cause) == ("lost", "gone", "node failure")


def test_an_own_run_that_slurm_has_forgotten_is_lost(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sent(tmp_path / "run", "7", state="running", attempts=[attempt("7")])
    assert seen(run).state == "lost"
    assert f"continue it with: distft resume {run.path}\n" in shown(run, capsys)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # who looks at it may not write there
    assert "resume" not in shown(run, capsys)


def test_without_an_answer_a_silent_run_is_unknown_and_not_lost(tmp_path: Path, slurm: Slurm) -> None:
    run = sent(tmp_path / "run", "7", state="running", attempts=[attempt("7")])
    slurm.fails("squeue")
    assert seen(run).state == "unknown"


@pytest.mark.parametrize(
    ("comment", "job"),
    [("distft={id}:{run}", "running"), ("", "running"), ("of mine", "running"), ("distft=ab12:/another", "gone")],
)
def test_a_job_with_the_tag_of_another_run_is_none_of_this_one(
    tmp_path: Path, slurm: Slurm, comment: str, job: str
) -> None:
    run = sent(tmp_path / "run", "7")
    tagged = comment.format(id=run.read().id, run=run.path)
    slurm.says("squeue", f"7|RUNNING|None|1700000000|node1|{tagged}\n")
    found = status.all_statuses([run.path])[0][0].job
    assert found is not None
    assert found.state == job
