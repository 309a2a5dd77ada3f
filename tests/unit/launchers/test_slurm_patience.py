"""A controller of SLURM that is silent for a while, or whose answer is lost; scontrol is a small script here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from launchers.slurm import patience, scheduler

Controller = Callable[..., None]
RUNNING, AGAIN = "JobId=7 JobState=RUNNING Restarts=2", "JobId=7 JobState=COMPLETING Restarts=3"
PENDING, ENDING = "JobId=7 JobState=PENDING", "JobId=7 JobState=COMPLETING Restarts=2"
SILENT, GRANTED = "", "granted"


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses made; a clock that stands still but for them."""
    made: list[float] = []
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: sum(made), sleep=made.append))
    return made


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> Controller:
    """`controller(ANSWER, ...)` is what scontrol prints at one call after the other; nothing: it fails."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(scheduler, "ANSWER_SECONDS", 5.0)

    def answer(*answers: str) -> None:
        (tmp_path / "answers").write_text("".join(f"{line}\n" for line in answers))
        (tmp_path / "scontrol").write_text(
            f"#!/bin/sh\necho $* >> {tmp_path}/calls\n"
            f"line=$(sed -n $(wc -l < {tmp_path}/calls)p {tmp_path}/answers)\n"
            '[ -n "$line" ] && echo "$line"\n'
        )
        (tmp_path / "scontrol").chmod(0o755)

    return answer


def requeues(tmp_path: Path) -> int:
    return (tmp_path / "calls").read_text().count("requeue 7")


def test_a_controller_that_answers_is_asked_once(
    controller: Controller, tmp_path: Path, seconds: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    controller(RUNNING, GRANTED)
    assert patience.shown("7") == scheduler.Shown("RUNNING", 2)
    assert patience.requeue("7", 2, "RUNNING") is None
    assert (tmp_path / "calls").read_text().splitlines() == ["--oneliner show job 7", "requeue 7"]
    assert seconds == []
    assert capsys.readouterr().out == ""


def test_a_controller_that_restarts_is_asked_until_it_answers(
    controller: Controller, seconds: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    controller(*[SILENT] * 20, RUNNING)
    found = patience.shown("7")
    assert found is not None
    assert found.state == "RUNNING"
    assert len(seconds) == 20
    assert (seconds[0], seconds[-1]) == (patience.FIRST_PAUSE_SECONDS, patience.LONGEST_PAUSE_SECONDS)
    assert 120 < sum(seconds) < 180
    said = capsys.readouterr().out.splitlines()  # once, and once a minute
    assert len(said) == 3
    assert all(line.startswith("distft: SLURM's controller has not answered for ") for line in said)


def test_a_machine_without_slurms_commands_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: list[float]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert patience.shown("7") is None
    assert patience.requeue("7", 2, "RUNNING") == patience.REFUSED
    assert seconds == []


@pytest.mark.parametrize(
    ("answers", "wanted", "asked"),
    [
        ([SILENT, SILENT, RUNNING, GRANTED], None, 2),  # neither heard
        ([SILENT, SILENT, SILENT, SILENT, RUNNING, SILENT, SILENT, RUNNING, GRANTED], None, 3),
        ([SILENT, AGAIN], None, 1),  # granted, and only the answer lost
        ([SILENT, SILENT, SILENT, AGAIN], None, 1),
        ([SILENT, PENDING], None, 1),
        ([SILENT, SILENT, "JobId=7 JobState=RUNNING Restarts=3"], None, 1),  # on other nodes already
        ([SILENT, "JobId=7 JobState=COMPLETING"], None, 1),
        ([SILENT, RUNNING, GRANTED], None, 2),  # it came back between the two questions
        ([SILENT, RUNNING, SILENT, RUNNING], "SLURM refuses to requeue the job", 2),
        ([SILENT, SILENT, SILENT, ENDING], "SLURM is ending the job (COMPLETING)", 1),  # cancelled meanwhile
    ],
)
def test_a_requeue_is_asked_for_until_it_is_granted_or_refused_and_granted_once(
    controller: Controller, tmp_path: Path, answers: list[str], wanted: str | None, asked: int
) -> None:
    controller(*answers)
    assert patience.requeue("7", 2, "RUNNING") == wanted
    assert requeues(tmp_path) == asked
    assert len((tmp_path / "calls").read_text().splitlines()) == len(answers)


def test_a_job_past_its_time_limit_is_ending_before_and_after(controller: Controller, tmp_path: Path) -> None:
    controller(SILENT, SILENT, ENDING, GRANTED)
    assert patience.requeue("7", 2, "COMPLETING") is None
    assert requeues(tmp_path) == 2


def test_a_busy_controller_that_shows_the_job_and_is_slow_to_requeue_it_has_not_refused(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller(*[RUNNING] * 3)
    answers = iter([None, None, None, True])
    waited: list[float] = []

    def requeue(job: str, seconds: float) -> bool | None:
        waited.append(seconds)
        return next(answers)

    monkeypatch.setattr(scheduler, "requeue", requeue)
    assert patience.requeue("7", 2, "RUNNING") is None
    assert waited == [5.0, 7.5, 11.25, 16.875]


def test_a_requeue_without_an_answer_in_time_is_neither_granted_nor_refused(
    controller: Controller, tmp_path: Path
) -> None:
    controller()
    assert scheduler.requeue("7") is False
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexec sleep 20\n")
    assert scheduler.requeue("7", 0.2) is None
