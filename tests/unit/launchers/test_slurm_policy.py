"""What is made of SLURM's answers: causes, states, and whether a job is started again. SLURM's commands are small
scripts here, at the edge; tests/cluster has the real ones."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from distft.commands import status
from distft.errors import DONE, FAILED, PREEMPTED, USAGE, UserError
from distft.launcher import Job, Resources
from distft.run import lease
from distft.run.folder import Attempt, Run, RunDir, State
from distft.run.lease import Lease
from launchers.attempt import Verdict, fruitless
from launchers.local import settle_recipe
from launchers.slurm import cause, node, patience, policy, scheduler, submit, verdicts
from tests.unit.full_disk import fill
from tests.unit.recipes import recipe

Answer = Callable[[str, str, int], None]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    settle_recipe(made, recipe())
    return made


@pytest.fixture
def answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """`answer(command, text, code)` makes a command of SLURM print `text`; the others do not exist."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(scheduler, "ANSWER_SECONDS", 5.0)
    for command in ("squeue", "sacct", "scontrol", "scancel", "sbatch", "sinfo"):
        (folder / command).write_text("#!/bin/sh\nexit 1\n")
        (folder / command).chmod(0o755)

    def set_answer(command: str, text: str, code: int = 0) -> None:
        (folder / f"{command}.out").write_text(text)
        script = f'#!/bin/sh\necho "$0 $*" >> {folder}/calls\ncat {folder}/{command}.out\nexit {code}\n'
        (folder / command).write_text(script)

    return set_answer


def attempt(number: int = 1, **values: Any) -> Attempt:
    base: dict[str, Any] = {"hosts": ["node1"], "pid": 1, "world_size": 2, "zero_stage": 2, "start": 1000.0 * number}
    return Attempt(number=number, **(base | {"job": "7", "restart": number - 1, "end": 1000.0 * number + 9} | values))


def fruitless_attempts(*causes: str, code: int = FAILED) -> Run:
    return Run("x", attempts=[attempt(n, cause=text, exit_code=code) for n, text in enumerate(causes, start=1)])


# --- what SLURM says --------------------------------------------------------------------------------------------------


def test_no_command_and_no_answer_is_nothing_known(answer: Answer) -> None:
    assert scheduler.queued(["1"]) is None
    assert scheduler.accounted("1") is None
    assert scheduler.state_of("1") is None
    assert not scheduler.requeue("1")
    assert scheduler.queued([]) == {}


def test_a_command_that_hangs_is_not_waited_for(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "ANSWER_SECONDS", 0.2)
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexec sleep 20\n")
    assert scheduler.queued(["1"]) is None


def test_squeue_and_sacct_are_read(answer: Answer) -> None:
    answer("squeue", "7|PENDING|Priority|1700000000|\n8|RUNNING|None|1700000000|node[1-2]\nnonsense\n")
    found = scheduler.queued(["7", "9"])
    assert found is not None
    assert list(found) == ["7"]
    assert (found["7"].state, found["7"].reason, found["7"].start) == ("PENDING", "Priority", "1700000000")
    answer("sacct", "7|PREEMPTED|1000|1100|node1\n7|CANCELLED by 0|1200|1300|node1\n7|RUNNING|1150|Unknown|node2\n")
    starts = scheduler.accounted("7")
    assert starts is not None
    assert [(entry.cause, entry.start) for entry in starts] == [
        ("preempted", 1000.0), (None, 1150.0), ("cancelled", 1200.0)
    ]  # fmt: skip


# --- causes -----------------------------------------------------------------------------------------------------------


def test_an_attempt_that_could_not_say_its_end_gets_it_from_sacct(run: RunDir, answer: Answer) -> None:
    answer("sacct", "7|NODE_FAIL|1000|1100|node1\n7|OUT_OF_MEMORY|2000|2100|node1\n7|RUNNING|3000|Unknown|node1\n")
    record = Run(
        "x", attempts=[attempt(1, end=None), attempt(2, cause="killed", exit_code=1), attempt(3, cause="finished")]
    )
    cause.settle(run, record)
    assert [entry.cause for entry in record.attempts] == ["node failure", "out of memory", "finished"]
    assert record.attempts[0].end == 1100.0
    assert record.attempts[0].exit_code == FAILED


def test_without_accounting_it_stays_killed(run: RunDir, answer: Answer) -> None:
    record = Run("x", attempts=[attempt(1, end=None)])
    cause.settle(run, record)
    assert record.attempts[0].cause == "killed"
    assert record.attempts[0].end is not None


@pytest.mark.parametrize(
    ("verdict", "signals", "left", "wanted"),
    [
        (Verdict(PREEMPTED, "preempted"), [], 20, "time limit (by the clock)"),
        (Verdict(PREEMPTED, "preempted (SIGUSR2)"), [signal.SIGUSR2], 100, "time limit (SIGUSR2)"),
        (Verdict(PREEMPTED, "preempted (SIGUSR2)"), [signal.SIGUSR2], 4000, "preempted (SIGUSR2)"),
        (Verdict(PREEMPTED, "preempted (SIGTERM)"), [signal.SIGTERM], 20, "preempted (SIGTERM)"),
        (Verdict(FAILED, "rank 0 crashed"), [], 20, "rank 0 crashed"),
    ],
)
def test_a_stop_near_the_time_limit_is_the_limits(
    monkeypatch: pytest.MonkeyPatch, verdict: Verdict, signals: list[signal.Signals], left: float, wanted: str
) -> None:
    monkeypatch.setenv("DISTFT_SIGNAL_LEAD", "60")
    assert cause.stop_cause(verdict, signals, time.time() + left).cause == wanted


# --- the policy -------------------------------------------------------------------------------------------------------

STOPPED, CRASHED = Verdict(PREEMPTED, "preempted (SIGUSR1)"), Verdict(FAILED, "rank 0 crashed")


@pytest.mark.parametrize(
    ("verdict", "state", "record", "action"),
    [
        (Verdict(DONE, "finished"), "RUNNING", Run("x"), "leave"),
        (Verdict(USAGE, "no such file"), "RUNNING", Run("x"), "leave"),
        (STOPPED, "RUNNING", Run("x"), "requeue"),
        (STOPPED, "COMPLETING", Run("x"), "leave"),
        (STOPPED, None, Run("x"), "leave"),
        (CRASHED, "RUNNING", fruitless_attempts("a", "b"), "requeue"),
        (CRASHED, "RUNNING", fruitless_attempts("a", "b", "c"), "hold"),
        (CRASHED, "COMPLETING", fruitless_attempts("a", "b", "c"), "leave"),
        (STOPPED, "RUNNING", fruitless_attempts(*["preempted (SIGUSR2)"] * 9, code=PREEMPTED), "requeue"),
        (STOPPED, "RUNNING", fruitless_attempts(*["time limit (by the clock)"] * 3, code=PREEMPTED), "hold"),
        (CRASHED, "RUNNING", fruitless_attempts("a", "preempted (SIGUSR2)", "b"), "requeue"),
    ],
)
def test_what_is_done_with_the_job(verdict: Verdict, state: str | None, record: Run, action: str) -> None:
    assert policy.decide(record, verdict, state).action == action


def test_a_commit_begins_the_count_anew() -> None:
    record = fruitless_attempts("a", "b", "c", "d")
    assert fruitless(record) == 4
    record.attempts[2].commit_before, record.attempts[2].commit_after = 50, 100
    assert fruitless(record) == 1
    assert policy.decide(record, CRASHED, "RUNNING").action == "requeue"


def after_srun(run: RunDir, monkeypatch: pytest.MonkeyPatch, code: int, restart: int = 0) -> int:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
    monkeypatch.setenv("DISTFT_RUN_DIR", str(run.path))
    monkeypatch.setattr(sys, "argv", ["policy", str(code)])
    return policy.main()


def calls(tmp_path: Path) -> str:
    path = tmp_path / "bin" / "calls"
    return path.read_text() if path.exists() else ""


def test_the_nodes_verdict_counts_and_not_sruns_code(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    run.write(Run("x", state="failed", attempts=[attempt(1, cause="no such data", exit_code=USAGE)]))
    folder = node.folder(run, "7", 0)
    folder.mkdir(parents=True)
    (folder / "node-0.json").write_text(json.dumps({"code": USAGE, "cause": "no such data", "weight": 1}))
    assert after_srun(run, monkeypatch, 75) == USAGE  # a bystander's 75 would have been requeued
    assert "requeue" not in calls(tmp_path)


def test_a_killed_parent_is_recorded_and_the_job_started_again(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    run.write(Run("x", state="running", attempts=[attempt(1, end=None)]))
    assert after_srun(run, monkeypatch, 137) == FAILED
    [closed] = run.read().attempts
    assert closed.cause == "srun or the first node's light parent was killed by signal 9"
    assert run.read().state == "failed"
    assert calls(tmp_path).count("requeue 7") == 1


def test_a_parent_killed_while_it_waited_had_said_why_its_ranks_ended(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    run.write(Run("x", state="running", attempts=[attempt(1, end=None, hosts=["n1", "n2"])]))
    own = Verdict(FAILED, "rank 0 crashed", 3, "n1")
    verdicts.Verdicts(node.folder(run, "7", 0), 0, 2).of(1).leave(own)
    assert after_srun(run, monkeypatch, 137) == FAILED
    [closed] = run.read().attempts
    assert (closed.cause, closed.failed_on) == ("node lost: n2 is silent, rank 0 crashed", "n2")


def test_a_parent_killed_during_the_export_had_not_finished(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    run.write(Run("x", state="running", trained=5, attempts=[attempt(1, end=None)]))
    verdicts.Verdicts(node.folder(run, "7", 0), 0, 1).of(1).leave(Verdict(DONE, "finished", 5))  # its ranks
    assert after_srun(run, monkeypatch, 137) == FAILED
    assert run.read().state == "trained"
    assert calls(tmp_path).count("requeue 7") == 1


@pytest.mark.parametrize(("left", "state"), [((0, 1), "preempted"), ((0,), "held")], ids=["all spoke", "one did not"])
def test_a_node_that_cannot_leave_a_verdict_has_no_job_started_again_without_end(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, left: tuple[int, ...], state: str
) -> None:
    """It takes no file of ours; srun stops the others, to which that looks like a preemption."""
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    stopped, attempts = Verdict(PREEMPTED, "preempted (SIGTERM)", -1), []
    for restart in range(3):
        number = restart + 1
        attempts.append(attempt(number, hosts=["n1", "n2"], cause="preempted (SIGTERM)", exit_code=PREEMPTED))
        record = run.read()
        run.write(dataclasses.replace(record, state="preempted", attempts=[*record.attempts, attempts[-1]]))
        for index in left:
            verdicts.Verdicts(node.folder(run, "7", restart), index, 2).leave(stopped)
        after_srun(run, monkeypatch, 75, restart)
    assert run.read().state == state
    silent = "node lost: n2 left no verdict, " if state == "held" else ""
    assert [one.cause for one in run.read().attempts] == [f"{silent}preempted (SIGTERM)"] * 3


@pytest.mark.parametrize("newest", [None, "step-00000100"], ids=["without a checkpoint", "behind a checkpoint"])
def test_a_start_that_never_began_counts_as_an_attempt(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, newest: str | None
) -> None:
    if newest is not None:
        (run.checkpoints / newest).mkdir(parents=True)
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    for restart in range(3):
        after_srun(run, monkeypatch, 1, restart)
    assert run.read().state == "held"
    assert "3 attempts in a row committed nothing" in str(run.read().reason)
    assert calls(tmp_path).count("requeue 7") == 2


@pytest.mark.parametrize(
    ("accounting", "code", "before", "cause", "state", "requeues"),
    [
        ("CANCELLED by 0", PREEMPTED, "preempted (SIGTERM)", "cancelled: preempted (SIGTERM)", "cancelled", 0),
        # of which SLURM starts nothing again
        ("TIMEOUT", PREEMPTED, "preempted (SIGTERM)", "time limit: preempted (SIGTERM)", "preempted", 1),
        ("CANCELLED by 0", DONE, "finished", "finished", "done", 0),  # a finished run stays so
    ],
)
def test_what_slurm_does_to_a_job_is_recorded(
    run: RunDir,
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    accounting: str,
    code: int,
    before: str,
    cause: str,
    state: State,
    requeues: int,
) -> None:
    answer("scontrol", "JobId=7 JobState=COMPLETING Reason=None\n")
    answer("sacct", f"7|{accounting}|1000|1100|node1\n")
    ended: State = "done" if code == DONE else "preempted"
    run.write(Run("x", state=ended, attempts=[attempt(1, cause=before, exit_code=code)]))
    after_srun(run, monkeypatch, code)
    assert (run.read().state, run.read().attempts[0].cause) == (state, cause)
    assert calls(tmp_path).count("requeue 7") == requeues


def test_an_attempt_that_was_given_up_touches_nothing(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    run.write(Run("x", state="running", attempts=[attempt(1), attempt(2, end=None)]))
    before = run.json.read_bytes()
    lease._write(run, Lease(host="node3", pid=1, job="7", restart=1))
    assert after_srun(run, monkeypatch, 1, restart=0) == 1
    lease._write(run, Lease(host="node3", pid=1, job="10", restart=0))  # "10" < "7"
    assert after_srun(run, monkeypatch, 1, restart=0) == 1
    assert run.json.read_bytes() == before
    assert "requeue" not in calls(tmp_path)


def test_a_lease_that_its_dead_holder_never_released_silences_nobody(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    lease._write(run, Lease(host="node3", pid=1, job="6", restart=0))
    os.utime(run.path / "lease.json", (1000.0, 1000.0))
    assert after_srun(run, monkeypatch, 137) == FAILED
    assert len(run.read().attempts) == 1
    assert "requeue 7" in calls(tmp_path)


def test_a_resumed_run_is_counted_anew() -> None:
    record = fruitless_attempts("a", "b", "c")
    record.attempts.append(attempt(4, job="8", cause="d", exit_code=FAILED))
    assert fruitless(record) == 1
    here = [attempt(n, job=None, pid=pid, cause="x", exit_code=FAILED) for n, pid in ((1, 5), (2, 5), (3, 6))]
    assert [fruitless(Run("x", attempts=here[:n])) for n in (2, 3)] == [2, 1]


@pytest.mark.parametrize(("code", "wanted"), [(143, PREEMPTED), (140, PREEMPTED), (138, PREEMPTED), (137, FAILED)])
def test_a_stop_before_anybody_listened_is_a_stop(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, code: int, wanted: int
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    assert after_srun(run, monkeypatch, code) == wanted
    assert fruitless(run.read()) == 1  # SLURM may have sent it because another node's parent failed at once


def test_a_moment_without_a_file_system_and_words_in_another_encoding_keep_no_job_from_its_requeue(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer("scontrol", "")
    (tmp_path / "bin" / "scontrol.out").write_bytes(b"JobId=7 Comment=gr\xfc\xdfe JobState=RUNNING Reason=None\n")
    run.write(Run("x", state="preempted", attempts=[attempt(1, cause="preempted", exit_code=PREEMPTED)]))
    monkeypatch.setattr(RunDir, "write", Mock(side_effect=OSError(errno.EIO, "Input/output error", "run.json")))
    assert after_srun(run, monkeypatch, 75) == PREEMPTED
    assert "requeue 7" in calls(tmp_path)
    assert "could not be updated: run.json: input/output error" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "cause"),
    [(137, "crash"), (75, "preempted (SIGUSR1)"), (USAGE, "no space left on the device")],
    ids=["a crash", "a preemption", "what a rank took for wrong input"],
)
def test_a_full_disk_holds_the_run_and_says_why(
    run: RunDir,
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    code: int,
    cause: str,
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    run.write(Run("x", state="running", attempts=[attempt(1, end=None, cause=cause)]))
    fill(run.path, monkeypatch)
    assert after_srun(run, monkeypatch, code) == FAILED
    record = run.read()
    assert (record.state, record.reason) == ("held", f"no space left for {run.path} (Disk quota exceeded)")
    assert record.attempts[0].end is not None
    assert "requeue" not in calls(tmp_path)
    assert f"distft: held: {record.reason}; free some, then: distft resume {run.path}\n" in capsys.readouterr().out


def test_last_words_of_the_parent_on_a_full_disk_hold_the_run_too(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    fill(run.path, monkeypatch)
    run.write(Run("x", state="failed", attempts=[attempt(1, cause="the parent process failed", exit_code=FAILED)]))
    assert not run.reserve.exists()  # so that a little is free now
    assert after_srun(run, monkeypatch, 137) == FAILED
    assert run.read().state == "held"
    assert "requeue" not in calls(tmp_path)


def test_a_full_disk_that_takes_not_even_last_words_requeues_nothing(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    run.reserve.unlink()
    fill(run.path, monkeypatch)
    assert after_srun(run, monkeypatch, 137) == FAILED
    assert "requeue" not in calls(tmp_path)
    said = capsys.readouterr().out
    assert f"{run.json} could not be updated: no space left" in said
    assert f"held: no space left for {run.path} (Disk quota exceeded); free some" in said


@pytest.mark.parametrize("known", [0, 1], ids=["nothing was recorded", "one start was recorded"])
def test_starts_of_which_nothing_can_be_recorded_come_to_an_end(
    run: RunDir,
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    known: int,
) -> None:
    answer("scontrol", "JobId=7 JobState=RUNNING Reason=None\n")
    attempts = [attempt(1, cause="preempted (SIGTERM)", exit_code=PREEMPTED), attempt(1, job="6", restart=9)]
    run.write(Run("x", state="failed", attempts=attempts[1 - known :]))
    monkeypatch.setattr(RunDir, "write", Mock(side_effect=OSError(errno.ESTALE, "Stale file handle", "run.json")))
    codes = [after_srun(run, monkeypatch, 143, restart) for restart in range(known, known + 3)]
    assert codes == [PREEMPTED, PREEMPTED, FAILED]
    assert calls(tmp_path).count("requeue 7") == 2
    assert "held: nothing could be recorded of the last 3 starts of the job: run.json: stale file handle" in (
        capsys.readouterr().out
    )


def scontrol(tmp_path: Path, text: str, silent: int) -> None:
    """It prints `text`, after some calls without an answer."""
    path = tmp_path / "bin" / "calls"
    script = f'#!/bin/sh\necho "$0 $*" >> {path}\n[ $(wc -l < {path}) -gt {silent} ] && echo "{text}"\n'
    (tmp_path / "bin" / "scontrol").write_text(script)


def test_a_silent_controller_ends_no_job(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.01)
    scontrol(tmp_path, "JobId=7 JobState=RUNNING Restarts=0", silent=3)
    run.write(Run("x", state="preempted", attempts=[attempt(1, cause="preempted (SIGUSR1)", exit_code=PREEMPTED)]))
    assert after_srun(run, monkeypatch, 75) == PREEMPTED
    assert calls(tmp_path).count("requeue 7") == 1
    assert capsys.readouterr().out.splitlines()[-1] == "distft: killed: SLURM requeues the job"


def test_a_controller_that_knows_no_such_job_is_not_silent(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "slurm_load_jobs error: Invalid job id specified"
    (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    run.write(Run("x", state="preempted", attempts=[attempt(1, cause="preempted (SIGUSR1)", exit_code=PREEMPTED)]))
    assert after_srun(run, monkeypatch, 75) == PREEMPTED
    assert "SLURM has ended the job (FORGOTTEN)" in capsys.readouterr().out


def test_a_requeue_whose_answer_is_lost_is_not_asked_for_again(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bin" / "calls"
    (tmp_path / "bin" / "scontrol").write_text(
        f'#!/bin/sh\necho "$0 $*" >> {path}\n[ "$1" = requeue ] && exit 1\n'
        f"grep -q ' requeue ' {path} && echo JobState=COMPLETING Restarts=1 || echo JobState=RUNNING Restarts=0\n"
    )
    run.write(Run("x", state="preempted", attempts=[attempt(1, cause="preempted (SIGUSR1)", exit_code=PREEMPTED)]))
    after_srun(run, monkeypatch, 75)
    assert calls(tmp_path).count("requeue 7") == 1
    assert "SLURM requeues the job" in capsys.readouterr().out


@pytest.mark.parametrize("seen_by", ["SLURM", "the lease"])
def test_who_waited_for_an_answer_while_the_job_was_started_again_touches_nothing(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seen_by: str
) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_SECONDS", 0.01)
    scontrol(tmp_path, f"JobId=7 JobState=RUNNING Restarts={int(seen_by == 'SLURM')}", silent=2)
    later = Run("x", state="running", attempts=[attempt(1), attempt(2, end=None)])

    def start_again(seconds: float) -> None:
        run.write(later)
        if seen_by == "the lease":
            lease._write(run, Lease(host="node3", pid=1, job="7", restart=1))

    monkeypatch.setattr(patience.time, "sleep", start_again)
    run.write(Run("x", state="running", attempts=[attempt(1, end=None)]))
    assert after_srun(run, monkeypatch, 137, restart=0) == 137
    assert run.read() == later
    assert "requeue" not in calls(tmp_path)


@pytest.mark.parametrize("code", [DONE, USAGE])
def test_a_job_that_is_over_anyway_waits_for_no_answer(
    run: RunDir, answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    scontrol(tmp_path, "", silent=1000)
    run.write(Run("x", state="failed", attempts=[attempt(1, cause="x", exit_code=code)]))
    assert after_srun(run, monkeypatch, code) == code
    assert calls(tmp_path).count("show job 7") == 1


@pytest.mark.parametrize(
    ("excluded", "reservation", "wanted"),
    [("(null)", None, ["n1"]), ("n4", None, []), ("(null)", "course", [])],
    ids=["enough others", "one is excluded already", "a reservation"],
)
def test_a_suspect_is_avoided_where_enough_nodes_of_its_kind_are_left(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, excluded: str, reservation: str | None, wanted: list[str]
) -> None:
    monkeypatch.setenv("DISTFT_HOSTS", "n1,n2")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    if reservation is not None:
        monkeypatch.setenv("SLURM_JOB_RESERVATION", reservation)
    a100 = "a100,ib|gpu:a100:4"
    answer("sinfo", f"n1|idle|{a100}\nn2|mixed|{a100}\nn3|down*|{a100}\nn4|idle|{a100}\nn5|idle|v100|gpu:v100:4\n")
    answer("scontrol", f"JobId=7 ExcNodeList={excluded} NodeList=n[1-2]\n")
    if excluded != "(null)":
        answer("scontrol", f"ExcNodeList={excluded}\n{excluded}\n")
    record = Run("x", attempts=[attempt(n, failed_on="n1") for n in (1, 2)])
    assert policy.to_avoid(record, "7") == wanted


def test_a_node_is_blamed_by_slurms_name_of_it() -> None:
    here = node.NodePlace("7", 0, 1, ["n1", "n2"], 1, None)
    assert here.named(Verdict(FAILED, "x", host="n2.cluster.local")).host == "n2"
    assert here.named(STOPPED).host is None


def stopped_by(run: RunDir, answer: Answer, accounting: str, code: int = PREEMPTED, attempts: int = 1) -> None:
    """The first node's parent leaves because SLURM ends the job, for a reason."""
    answer("scontrol", "JobId=7 JobState=COMPLETING Reason=JobLaunchFailure\n")
    answer("sacct", "".join(f"7|REQUEUED|{n}000|{n}100|node1\n" for n in range(1, attempts)) + accounting)
    run.write(
        Run(
            "x",
            state="preempted",
            attempts=[attempt(n, cause="preempted (SIGTERM)", exit_code=code) for n in range(1, attempts + 1)],
        )
    )
    policy.in_place_of_the_script(run, "7", attempts - 1, Verdict(code, "preempted (SIGTERM)"))


@pytest.mark.parametrize("attempts", [1, 2])
def test_where_the_script_was_killed_the_first_node_has_the_job_started_again(
    run: RunDir, answer: Answer, tmp_path: Path, attempts: int
) -> None:
    stopped_by(run, answer, f"7|FAILED|{attempts}000|{attempts}100|node1\n", attempts=attempts)
    assert run.read().attempts[-1].cause == "the batch script was killed: preempted (SIGTERM)"
    assert calls(tmp_path).count("requeue 7") == 1


@pytest.mark.parametrize("state", ["CANCELLED by 0", "TIMEOUT", "PREEMPTED", "REQUEUED", "NODE_FAIL", "RUNNING"])
def test_where_slurm_itself_ends_the_job_the_first_node_leaves_it_to_it(
    run: RunDir, answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(policy, "ACCOUNTING_SECONDS", 0.1)
    stopped_by(run, answer, f"7|{state}|1000|1100|node1\n")
    assert run.read().attempts[-1].cause == "preempted (SIGTERM)"
    assert "requeue" not in calls(tmp_path)


def test_the_end_of_an_earlier_start_says_nothing_about_this_one(
    run: RunDir, answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "ACCOUNTING_SECONDS", 0.1)
    stopped_by(run, answer, "7|FAILED|1000|1100|node1\n")
    run.write(Run("x", attempts=[attempt(2, cause="preempted (SIGTERM)", exit_code=PREEMPTED)]))
    before = calls(tmp_path).count("requeue 7")
    policy.in_place_of_the_script(run, "7", 1, Verdict(PREEMPTED, "preempted (SIGTERM)"))
    assert calls(tmp_path).count("requeue 7") == before


def test_where_the_script_was_killed_on_a_full_disk_the_run_is_held(
    run: RunDir, answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(run.path, monkeypatch)
    stopped_by(run, answer, "7|FAILED|1000|1100|node1\n")
    assert run.read().state == "held"
    assert "requeue" not in calls(tmp_path)


def test_where_the_script_was_killed_a_silent_controller_is_not_waited_for(
    run: RunDir, answer: Answer, tmp_path: Path
) -> None:
    scontrol(tmp_path, "", silent=1000)
    answer("sacct", "7|FAILED|1000|1100|node1\n")
    run.write(Run("x", attempts=[attempt(1, cause="preempted (SIGTERM)", exit_code=PREEMPTED)]))
    policy.in_place_of_the_script(run, "7", 0, Verdict(PREEMPTED, "preempted (SIGTERM)"))
    assert [line.split("/")[-1] for line in calls(tmp_path).splitlines()] == [
        "scontrol --oneliner show job 7",
        "sacct -X --duplicates --noheader --parsable2 --format=JobID,State,Start,End,NodeList --jobs 7",
        "scontrol requeue 7",
    ]


def test_a_script_that_is_killed_again_and_again_without_a_commit_is_held(
    run: RunDir, answer: Answer, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        answer("scontrol", "JobId=7 JobState=COMPLETING Reason=JobLaunchFailure\n")
        answer("sacct", "".join(f"7|FAILED|{n}000|{n}100|node1\n" for n in range(1, number + 1)))
        record = run.read()
        record.attempts.append(attempt(number, cause="preempted (SIGTERM)", exit_code=PREEMPTED))
        run.write(record)
        policy.in_place_of_the_script(run, "7", number - 1, Verdict(PREEMPTED, "preempted (SIGTERM)"))
    assert run.read().state == "held"
    assert calls(tmp_path).count("requeue 7") == 2


# --- a node -----------------------------------------------------------------------------------------------------------


def test_where_a_node_is_comes_from_the_batch_script() -> None:
    environment = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "1", "DISTFT_HOSTS": "n1,n2", "DISTFT_RANKS": "2"}
    here = node.place({**environment, "SLURM_RESTART_COUNT": "3", "DISTFT_ENDS": "1700000000"})
    assert (here.job, here.restart, here.index, here.hosts, here.ranks) == ("7", 3, 1, ["n1", "n2"], 2)
    assert here.ends == 1700000000.0
    assert not here.leads
    assert node.place({**environment, "DISTFT_ENDS": "N/A"}).ends is None
    with pytest.raises(UserError, match="SLURM_NODEID"):
        node.place({"SLURM_JOB_ID": "7"})


@pytest.mark.parametrize(
    ("second", "weighed", "cause", "host"),
    [
        (None, Verdict(FAILED, "rank 0 crashed", 3, "n1"), "node lost: n2 is silent, rank 0 crashed", "n2"),
        (
            Verdict(FAILED, "rank 2 crashed", 3, "n2"),
            Verdict(FAILED, "rank 0 crashed", 3, "n1"),
            "rank 0 crashed",
            "n1",
        ),
        (None, Verdict(FAILED, "rank 0 was killed by SIGKILL", 0, "n1"), "rank 0 was killed by SIGKILL", "n1"),
        (None, Verdict(FAILED, "no such file", 3), "no such file", None),
        (None, Verdict(PREEMPTED, "preempted", 2), "preempted", None),
    ],
)
def test_a_crash_beside_a_silent_node_is_that_nodes(
    tmp_path: Path,
    second: Verdict | None,
    weighed: Verdict,
    cause: str,
    host: str | None,
) -> None:
    if second is not None:
        verdicts.Verdicts(tmp_path, 1, 2).leave(second)
    found = verdicts.Verdicts(tmp_path, 0, 2).blamed(weighed, ["n1", "n2"], seconds=0.1)
    assert (found.cause, found.host) == (cause, host)


def test_only_the_verdicts_that_are_there_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = verdicts.read_verdict

    def counted(path: Path) -> Verdict | None:
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(verdicts, "read_verdict", counted)
    of_mine = verdicts.Verdicts(tmp_path / "none yet", 1, 64)
    assert of_mine.elsewhere() is None
    assert opened == []
    of_mine.leave(Verdict(FAILED, "own", 0))
    for index, weight in ((9, 3), (10, 3), (0, 5)):
        verdicts.Verdicts(of_mine.folder, index, 64).leave(Verdict(FAILED, str(index), weight))
    for name in (".node-2.json.77", "node-64.json", "node-3.json.bak", "node-x.json"):
        (of_mine.folder / name).write_text(json.dumps({"code": FAILED, "cause": name, "weight": -9}))
    assert of_mine.elsewhere() == Verdict(FAILED, "9", 3)
    assert opened == ["node-0.json", "node-9.json", "node-10.json"]
    opened.clear()
    assert verdicts.Verdicts(of_mine.folder, 1, 2).all_there(seconds=0.0)
    assert opened == []
    assert not of_mine.all_there(seconds=0.0)


def test_a_listing_that_is_old_hides_no_verdict_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts.Verdicts(tmp_path, 1, 2).leave(Verdict(FAILED, "rank 1 was killed by SIGKILL", 0, "n2"))
    monkeypatch.setattr(verdicts.os, "listdir", lambda folder: [])
    seen, own = verdicts.Verdicts(tmp_path, 0, 2), Verdict(FAILED, "rank 0 crashed", 3, "n1")
    assert seen.all_there(seconds=0.0)
    assert seen.weighed(own, seconds=0.0).cause == "rank 1 was killed by SIGKILL"
    assert seen.blamed(own, ["n1", "n2"], seconds=0.0) == own


def test_a_damaged_verdict_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "node-1.json").write_text("{")
    assert verdicts.Verdicts(tmp_path, 0, 2).elsewhere() is None


def test_another_port_when_one_is_taken() -> None:
    with node.listen_near(23456) as first, node.listen_near(first.getsockname()[1]) as second:
        assert second.getsockname()[1] != first.getsockname()[1]


# --- the launcher -----------------------------------------------------------------------------------------------------


def sent(run: RunDir, *jobs: str) -> None:
    (run.path / "slurm").mkdir(exist_ok=True)
    entries = [{"job": job, "site": "s.toml", "nodes": 2, "time": "30", "submitted": 1.0} for job in jobs]
    (run.path / "slurm" / "jobs.json").write_text(json.dumps(entries))
    record = run.read()
    record.launcher = "slurm"
    run.write(record)


@pytest.mark.parametrize(
    ("squeue", "sacct", "state"),
    [
        ("7|PENDING|Priority|N/A|\n", "", "queued"),
        ("7|RUNNING|None|N/A|node1\n", "", "starting"),
        ("7|CANCELLED|None|N/A|node1\n", "", "cancelled"),
        ("", "7|CANCELLED by 12|1000|1100|node1\n", "cancelled"),
        ("", "7|NODE_FAIL|1000|1100|node1\n", "new"),
    ],
)
def test_status_joins_what_slurm_says(run: RunDir, answer: Answer, squeue: str, sacct: str, state: str) -> None:
    sent(run, "7")
    answer("squeue", squeue)
    answer("sacct", sacct)
    [found], _ = status.all_statuses([run.path])
    assert found.state == state


def test_a_damaged_run_hides_no_other(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run.path.parent / "runs"
    folder.mkdir()
    run.path.rename(folder / "a")
    (folder / "b").mkdir()
    (folder / "b" / "run.json").write_text("{")
    monkeypatch.chdir(folder.parent)
    statuses, broken = status.all_statuses([])
    assert [found.name for found in statuses] == ["x"]
    assert "b/run.json is damaged" in broken[0]
    with pytest.raises(UserError, match="is damaged"):
        status.all_statuses([folder / "b"])


def test_status_without_slurm_says_what_is_not_known(run: RunDir, answer: Answer) -> None:
    sent(run, "7")
    [found], _ = status.all_statuses([run.path])
    assert found.job is not None
    assert (found.job.state, "SLURM does not answer" in found.job.detail) == ("unknown", True)
    answer("squeue", "")
    [found], _ = status.all_statuses([run.path])
    assert found.job is not None
    assert "SLURM has no accounting" in found.job.detail


def test_a_job_that_a_batch_script_began_is_cancelled(run: RunDir, answer: Answer, tmp_path: Path) -> None:
    run.write(Run("x", id="ab12", state="running", attempts=[attempt(1, end=None)]))
    answer("squeue", f"7|RUNNING|distft=ab12:{run.path}\n")
    answer("scancel", "")
    assert "cancelled job 7" in submit.SlurmLauncher().cancel(run)
    assert "scancel 7" in calls(tmp_path)


def test_a_second_job_is_refused_and_a_cancel_needs_a_job(run: RunDir, answer: Answer, tmp_path: Path) -> None:
    sent(run, "7")
    answer("squeue", f"7|RUNNING|distft={run.read().id}:{run.path}\n")
    with pytest.raises(UserError, match=r"job 7 of .* is running already"):
        submit.refuse_second_job(run)
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    for command in (submit.refuse_second_job, submit.SlurmLauncher().cancel, lambda run: submit.after(None, run.path)):
        with pytest.raises(UserError, match="squeue does not answer"):
            command(run)
    answer("squeue", f"7|COMPLETED|distft={run.read().id}:{run.path}\n")
    submit.refuse_second_job(run)
    with pytest.raises(UserError, match="nothing to cancel"):
        submit.SlurmLauncher().cancel(run)


def test_a_refusal_of_sbatch_is_printed_as_it_is_and_nothing_is_left(
    tmp_path: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n"
    )
    (tmp_path / "model").touch()
    (tmp_path / "d.jsonl").touch()
    (tmp_path / "s.toml").write_text('partition = "gpu"\nshared = ["/"]\n')
    wanted = recipe(model={"path": str(tmp_path / "model")}, data={"train": str(tmp_path / "d.jsonl")})
    job = Job(tmp_path / "new", wanted, Resources(site=str(tmp_path / "s.toml")))
    answer("squeue", "")
    with pytest.raises(UserError, match=r"^sbatch: error: invalid partition specified: gpu$"):
        submit.SlurmLauncher().launch(job)
    assert not (tmp_path / "new").exists()


def test_a_run_waits_for_another(run: RunDir, answer: Answer) -> None:
    answer("squeue", f"7|PENDING|distft={run.read().id}:{run.path}\n")
    sent(run, "7")
    assert submit.after("singleton", run.path) == "singleton,afterok:7"
    record = run.read()
    record.state = "done"
    run.write(record)
    assert submit.after(None, run.path) is None
    record.state = "preempted"
    run.write(record)
    answer("squeue", "")
    with pytest.raises(UserError, match="is not finished and has no pending or running job; resume it first"):
        submit.after(None, run.path)
