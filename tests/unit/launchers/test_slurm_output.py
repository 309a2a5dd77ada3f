"""What is quoted of a job's output as the cause, where no attempt could say one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distft.run.folder import RunDir
from launchers.local import settle_recipe
from launchers.slurm import output, script
from launchers.slurm.script import Request
from launchers.slurm.site import Site
from tests.unit.recipes import recipe


def start(run: RunDir, tmp_path: Path, restart: int, *lines: str) -> None:
    """One start of the job: the shell around srun as it is sent, and the real policy. For srun: shell."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin" / "scontrol").write_text("#!/bin/sh\necho JobId=7 JobState=RUNNING\n")
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    request = Request("x", run.path, run.path / "slurm", Site(), 1, "1")
    own = [line for line in script.setup(request) if "DISTFT" in line and "$SLURM" not in line]
    variables = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restart), "PYTHONPATH": os.pathsep.join(sys.path)}
    with open(tmp_path / "job.out", "ab") as written:
        subprocess.run(
            ["bash", "-c", "\n".join([*own, *lines, *script.teardown()])],
            env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin", **variables},
            stdout=written,
            stderr=subprocess.STDOUT,
            check=False,
        )


def test_a_start_without_an_attempt_quotes_what_it_wrote_and_nothing_else(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    settle_recipe(run, recipe())
    start(run, tmp_path, 0, "echo 'srun: fatal: --a and --b are mutually exclusive.'", "(exit 1)")
    start(
        run,
        tmp_path,
        1,
        r"printf 'loading\n\033[31mpyxis:\033[0m image\tnot found\a\n'",
        "echo 'slurmstepd: error: *** STEP 7.0 ON n1 CANCELLED AT 2024-01-01T00:00:00 ***'",
        "echo 'srun: error: n2: task 1: Killed'",
        "(exit 137)",
    )
    start(run, tmp_path, 2, "(exit 1)")
    begin = "no attempt began (srun left with"
    assert [entry.cause for entry in run.read().attempts] == [
        f"{begin} 1); the end of the job's output: srun: fatal: --a and --b are mutually exclusive.",
        f"{begin} 137); the end of the job's output: loading; pyxis: image not found",
        "killed",  # it wrote nothing; what the policy had said is not its cause
    ]
    assert run.read().reason == "3 attempts in a row committed nothing; the last one: killed"
    assert (tmp_path / "job.out").read_text().count("SLURM requeues the job") == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", None),
        ("\n \x1b[0m\n", None),
        ("srun: error: n2: task 1: Killed\n", "srun: error: n2: task 1: Killed"),  # better than nothing
        ("".join(f"{n}\n" for n in range(9)), "3; 4; 5; 6; 7; 8"),
        ("10%\r50%\r100%\n", "10%; 50%; 100%"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}a\x00b\x7fc\n", "a b c"),
    ],
)
def test_lines_become_one(text: str, wanted: str | None) -> None:
    assert output.in_one_line(text) == wanted


def test_a_long_one_keeps_its_end() -> None:
    said = output.in_one_line("x" * 1000 + " the end\n")
    assert said is not None
    assert (len(said), said[:5], said[-9:]) == (output.MOST_CHARACTERS, "...xx", "x the end")


@pytest.mark.parametrize("span", ["", "-", "0-", "-0", "0-10", "9-3", "0-99999999", "x-y"])
def test_where_there_is_no_file_nothing_is_quoted(monkeypatch: pytest.MonkeyPatch, span: str) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(output, "OURS", f"/proc/self/fd/{writing}")
    monkeypatch.setenv("DISTFT_OUTPUT", span)
    assert output.last_words() is None
    os.close(reading)
    os.close(writing)
