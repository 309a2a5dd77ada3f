"""`distft status` from run folders alone: which runs it finds, what it reads of them, and how it shows them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from distft.cli.looks import app
from distft.commands import run_search, status, status_view
from distft.errors import UserError
from distft.run.files import lines_backwards
from distft.run.folder import Attempt, Run, RunDir
from launchers.local import settle_recipe
from tests.unit.recipes import recipe

KEYS = {
    "run_dir", "name", "state", "step", "total_steps", "loss", "eval_loss", "useful_tokens_per_s", "eta_seconds",
    "mfu", "memory_bytes", "memory_rank",
    "attempts", "reason", "excluded", "job",
}  # fmt: skip


def made(path: Path, train: dict[str, Any] | None = None, **values: Any) -> RunDir:
    run = RunDir(path)
    settle_recipe(run, recipe(name=path.name, train={"steps": 5, **(train or {})}))
    run.write(Run(path.name, **values))
    return run


def attempt(**values: Any) -> Attempt:
    known = {
        "number": 1,
        "hosts": ["node1"],
        "pid": 1,
        "world_size": 2,
        "zero_stage": 2,
        "start": 1000.0,
        "end": 1009.0,
    }
    return Attempt(**{**known, **values})


def step(number: int, **values: Any) -> str:
    return (
        json.dumps({"step": number, "loss": number / 10, "seconds": 2.0, "useful_tokens_per_s": 50.0, **values}) + "\n"
    )


def called(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["status", *map(str, words)])


# --- which runs -------------------------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_and_nothing_is_looked_for_in_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b", "team/a", "team/sub/c", "b/attempts/old", ".trash/d", "team/.hidden/e", "elsewhere/f"):
        made(tmp_path / "runs" / name)
    (tmp_path / "runs" / "elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs" / "b")  # found already
    (tmp_path / "runs" / "scratch").symlink_to(made(tmp_path / "other disk" / "g").path)
    found, unread = run_search.find([])
    assert [str(run.path.relative_to(tmp_path)) for run in found] == [
        "runs/b",
        "runs/scratch",
        "runs/team/a",
        "runs/team/sub/c",
    ]
    assert unread == []


def test_a_folder_that_is_no_run_stands_for_those_in_it(tmp_path: Path) -> None:
    runs = [made(tmp_path / "team" / name).path for name in ("a", "b")]
    found, _ = run_search.find([tmp_path / "team", runs[1]])
    assert [run.path for run in found] == runs
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=f"^{folder} holds no run"):
            status.all_statuses([folder])
    (runs[0] / "run.json").write_text("{")
    statuses, broken = status.all_statuses([tmp_path / "team"])  # neither was named
    assert [found.name for found in statuses] == ["b"]
    assert "a/run.json is damaged" in broken[0]


def test_without_runs_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert called().output == "no runs in ./runs; give a run folder\n"


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 7, 1 << 16])
@pytest.mark.parametrize("text", [b"", b"one", b"one\n", b"one\ntwo\n\nthree", b"\n\n"])
def test_lines_backwards_are_the_lines(tmp_path: Path, text: bytes, block: int) -> None:
    (tmp_path / "x").write_bytes(text)
    assert list(lines_backwards(tmp_path / "x", block)) == text.split(b"\n")[::-1]


def test_figures_are_those_of_the_last_steps(tmp_path: Path) -> None:
    run = made(tmp_path / "x", {"steps": 400, "eval_every": 100}, state="running")
    text = "".join(step(n) + ('{"step": 100, "eval_loss": 0.5}\n' if n == 100 else "") for n in range(1, 151))
    run.metrics.write_text(text + step(149, loss=7.0, seconds=4.0) + '{"step": 149, "save_seconds": 1}\n{"step": 15')
    found, _ = status.all_statuses([run.path])
    assert (found[0].step, found[0].loss, found[0].eval_loss, found[0].useful_tokens_per_s) == (149, 7.0, 0.5, 50.0)


@pytest.mark.parametrize("train", [{}, {"eval_every": 100}], ids=["no evaluation", "evaluations"])
def test_no_more_is_read_than_the_figures_need(
    tmp_path: Path, train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "x", {"steps": 9999, **train}, state="running")
    run.metrics.write_text("".join(step(number) for number in range(1, 5001)))
    read: list[int] = []
    all_records = RunDir.newest_records

    def counted(self: RunDir) -> Any:
        for record in all_records(self):
            read.append(record["step"])
            yield record

    monkeypatch.setattr(RunDir, "newest_records", counted)
    monkeypatch.setattr(RunDir, "records", None)
    assert status.all_statuses([run.path])[0][0].step == 5000
    assert len(read) < 150


def test_a_launcher_that_is_not_installed_hides_no_other_run(tmp_path: Path) -> None:
    made(tmp_path / "runs" / "a", launcher="cloud", state="running", attempts=[attempt(job="pod-3", end=None)])
    made(tmp_path / "runs" / "b", launcher="cloud")
    made(tmp_path / "runs" / "c")
    statuses, broken = status.all_statuses([tmp_path / "runs"])
    assert broken == []
    assert [found.state for found in statuses] == ["unknown", "new", "new"]
    assert statuses[0].job is not None
    assert (statuses[0].job.job, statuses[0].job.state) == ("pod-3", "unknown")
    assert statuses[0].job.detail == "no launcher is called 'cloud'; installed: local, slurm"
    assert called(tmp_path / "runs").exit_code == 0


def test_each_launcher_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def found(name: str) -> Any:
        def outlooks(runs: list[RunDir]) -> list[None]:
            asked.append((name, [run.path.name for run in runs]))
            return [None for _ in runs]

        return SimpleNamespace(outlooks=outlooks)

    monkeypatch.setattr(status, "find_launcher", found)
    for name, launcher, state in (
        ("a", "one", "new"),
        ("b", "two", "new"),
        ("c", "one", "failed"),
        ("d", "one", "done"),
    ):
        made(tmp_path / name, launcher=launcher, state=state)
    status.all_statuses([tmp_path])
    assert asked == [("one", ["a", "c"]), ("two", ["b"])]


# --- a file system in the way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file_system", "said"),
    [
        ({"f_flag": os.ST_RDONLY}, "read-only"),
        ({"f_bavail": 0}, "full"),
        ({"f_favail": 0}, "full"),
        ({"f_files": 0, "f_favail": 0}, None),  # btrfs
        ({"f_blocks": 0, "f_bavail": 0}, None),
    ],
)
def test_a_file_system_that_takes_nothing_is_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_system: dict[str, int], said: str | None
) -> None:
    run = made(tmp_path / "x", state="running")
    finished = made(tmp_path / "y", state="done")
    healthy = {"f_flag": 0, "f_blocks": 9, "f_bavail": 9, "f_files": 9, "f_favail": 9}
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**(healthy | file_system)))
    sentence = f"the file system of {run.path} is {said}"
    [lost, done], _ = status.all_statuses([run.path, finished.path])
    assert (lost.state, lost.reason) == ("lost", sentence if said else None)
    assert done.reason is None
    assert (f"\nlost: {sentence}\n" in called(run.path).output) == bool(said)


@pytest.mark.parametrize(("name", "number"), [("run.json", errno.ELOOP), ("metrics.jsonl", errno.EISDIR)])
def test_a_run_that_cannot_be_read_says_so_and_hides_no_other(tmp_path: Path, name: str, number: int) -> None:
    """Not even root can read a link to itself, or a folder."""
    made(tmp_path / "runs" / "a")
    refused = made(tmp_path / "runs" / "b").path / name
    refused.unlink(missing_ok=True)
    if number == errno.ELOOP:
        refused.symlink_to(name)
    else:
        refused.mkdir()
    sentence = f"{refused} cannot be read: {os.strerror(number).lower()}"
    with pytest.raises(UserError, match=f"^{sentence}$"):
        status.all_statuses([refused.parent])
    statuses, broken = status.all_statuses([tmp_path / "runs"])
    assert [found.name for found in statuses] == ["a"]
    assert broken == [sentence]


def test_a_folder_that_cannot_be_searched_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "closed").mkdir()
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    statuses, broken = status.all_statuses([tmp_path / "runs"])
    assert [found.name for found in statuses] == ["a"]
    assert broken == [f"{tmp_path}/runs/closed cannot be searched for runs: permission denied"]


# --- how it is shown --------------------------------------------------------------------------------------------------


def test_several_runs_are_a_line_each_and_one_is_shown_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = made(tmp_path / "runs" / "first", state="failed", attempts=[attempt(cause="rank 0 crashed")])
    first.metrics.write_text(step(4) + '{"step": 4, "eval_loss": 0.25}\n')
    made(tmp_path / "runs" / "team[x]" / "second")
    heading, one, other = called().output.splitlines()
    assert heading.split() == ["name", "state", "step", "loss", "held-out", "tokens/s", "ETA", "job", "folder"]
    assert one.split() == ["first", "failed", "4", "of", "5", "0.4000", "0.2500", "50", "-", "-", "runs/first"]
    assert other.split() == ["second", "new", "0", "of", "5", "-", "-", "-", "-", "-", "runs/team[x]/second"]
    assert called("runs").output == called("runs/first", "runs/team[x]").output == called().output
    full = called("runs/first").output
    assert full.startswith("first · failed · step 4 of 5 · loss 0.4000 · held-out loss 0.2500 · 50 useful tokens/s\n")
    assert "rank 0 crashed" in full
    assert called("runs", "--details").output.startswith(full)
    assert "second · new" in called("--details").output
    [line] = called("runs/team[x]").output.splitlines()[1:]  # one run, but it was not named
    assert line.split() == other.split()


@pytest.mark.parametrize(
    ("folders", "details", "line"),
    [(["runs"], False, "a     new"), (["runs/a"], False, "a · new"), ([], True, "a · new")],
)
def test_watch_shows_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folders: list[str],
    details: bool,
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "runs" / "a")

    def leave(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status_view.time, "sleep", leave)
    status_view.watch([Path(folder) for folder in folders], details)
    assert line in capsys.readouterr().out


def test_json_has_the_same_keys_for_one_and_for_several(tmp_path: Path) -> None:
    made(tmp_path / "a")
    made(tmp_path / "b")
    for words, number in (((tmp_path / "a",), 1), ((tmp_path,), 2), ((tmp_path, "--details"), 2)):
        found = json.loads(called(*words, "--json").output)
        assert [set(entry) for entry in found] == [KEYS] * number


def test_a_start_that_never_began_has_no_empty_cells(tmp_path: Path) -> None:
    never = attempt(hosts=[], world_size=0, zero_stage=0, cause="killed", job="7")
    run = made(tmp_path / "x", state="failed", attempts=[never])
    row = called(run.path).output.splitlines()[-1].split()
    assert row[:4] == ["1", "-", "-", "-"]
    assert row[-3:] == ["0:00:09", "-", "killed"]


@pytest.mark.parametrize(("state", "reason"), [("trained", None), ("held", "3 attempts in a row"), ("done", None)])
def test_of_a_trained_run_it_says_what_is_missing(tmp_path: Path, state: Any, reason: str | None) -> None:
    run = made(tmp_path / "x", state=state, reason=reason, trained=5)
    said = called(run.path).output
    assert (f"distft export {run.path} OUT" in said) == (state != "done")
    assert (reason or "") in said


def test_utilization_and_the_memory_of_the_worst_rank_are_shown(tmp_path: Path) -> None:
    run = made(tmp_path / "first", state="failed")
    worst = {"worst_memory_bytes": 5 * 2.0**30, "worst_memory_reserved_bytes": 6 * 2.0**30, "worst_memory_rank": 3}
    text = step(1, memory_bytes=1.0) + step(2, mfu=0.2, **worst) + step(3, mfu=0.4, memory_bytes=2.0)
    run.metrics.write_text(text)
    [found], _ = status.all_statuses([run.path])
    assert found.mfu == pytest.approx(0.3)
    assert (found.memory_bytes, found.memory_rank) == (6 * 2.0**30, 3)
    assert "MFU 30.0% · memory 6.0 GiB (rank 3)" in called(run.path).stdout.replace("\n", " ")
