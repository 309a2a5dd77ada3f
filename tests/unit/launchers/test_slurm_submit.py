"""From the command on the login node to the job in the queue. SLURM's commands are small scripts here that keep one
queue between them; tests/cluster has the real ones."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from distft.launcher import CLUSTER, Job, Resources
from distft.run.folder import RunDir
from launchers.slurm.submit import SlurmLauncher
from tests.unit.recipes import recipe

COMMANDS = {
    "sbatch": r"""
env > "$folder/environment"
number=$(($(cat "$folder/number") + 1)); echo $number > "$folder/number"
comment=$(sed -n "s/^#SBATCH --comment=//p" "$1" | tr -d "'")
echo "$number|PENDING|$comment" >> "$folder/queue"
echo "Submitted batch job $number"
""",
    "squeue": 'cat "$folder/queue"\n',
    "scancel": 'grep -v "^$1|" "$folder/queue" > "$folder/left"; mv "$folder/left" "$folder/queue"\n',
    "scontrol": 'cat "$folder/$2" 2>/dev/null\n',
    "sacct": "exit 1\n",
}


@dataclass(frozen=True)
class Slurm:
    """A queue without a cluster."""

    folder: Path

    def does(self, command: str, script: str) -> None:
        path = self.folder / command
        path.write_text(f'#!/bin/bash\nfolder="{self.folder}"\n{script}')
        path.chmod(0o755)

    def queue(self) -> list[str]:
        return (self.folder / "queue").read_text().splitlines()

    def environment(self) -> dict[str, str]:
        """That of the last sbatch."""
        lines = (self.folder / "environment").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    made = Slurm(tmp_path / "bin")
    made.folder.mkdir()
    for command, text in COMMANDS.items():
        made.does(command, text)
    (made.folder / "queue").touch()
    (made.folder / "number").write_text("6\n")
    monkeypatch.setenv("PATH", f"{made.folder}:/usr/bin:/bin")
    for name in ("model", "d.jsonl"):
        (tmp_path / name).touch()
    return made


def job(folder: Path, name: str = "run", profile: str = "", again: bool = False, **resources: object) -> Job:
    """What `submit` asks for, or `resume`."""
    (folder / "s.toml").write_text(f'shared = ["/"]\n{profile}')
    wanted = recipe(model={"path": str(folder / "model")}, data={"train": str(folder / "d.jsonl")})
    asked = Resources(**{"site": None if again else str(folder / "s.toml"), **resources})  # type: ignore[arg-type]
    return Job(folder / name, None if again else wanted, asked, launcher=CLUSTER)


def submit(folder: Path, name: str = "run", profile: str = "") -> RunDir:
    SlurmLauncher().launch(job(folder, name, profile))
    return RunDir(folder / name)


# --- what a job inherits ----------------------------------------------------------------------------------------------

OF_A_JOB = {
    "SLURM_MEM_PER_NODE": "512", "SLURM_CPU_BIND": "quiet", "SLURM_JOB_ID": "3", "SLURMD_NODENAME": "n1",
    "SRUN_DEBUG": "3", "SBATCH_NO_REQUEUE": "1", "SBATCH_TIMELIMIT": "1", "RANK": "0", "LOCAL_RANK": "0",
    "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "1", "DISTFT_ALLOW": "model.path",
    "DISTFT_RANKS": "8", "SUBMITIT_EXECUTOR": "x",
}  # fmt: skip
OF_THE_SHELL = {"SLURM_CONF": "/etc/x.conf", "DISTFT_SITE": "mine", "LOCAL_SCRATCH": "/ssd", "WANDB_API_KEY": "k"}


def test_a_job_sent_from_within_another_inherits_nothing_of_it(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (OF_A_JOB | OF_THE_SHELL).items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    submit(tmp_path)
    assert OF_A_JOB.keys() & slurm.environment().keys() == set()
    assert slurm.environment().items() >= OF_THE_SHELL.items()
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("profile", "kept"),
    [
        ("", {"SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS"}),
        ('account = "a"', {"SBATCH_PARTITION", "SBATCH_QOS"}),
        ('partition = "p"\nsbatch = ["--qos=q"]', {"SBATCH_ACCOUNT"}),
    ],
)
def test_the_shells_account_counts_where_the_profile_is_silent(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, kept: set[str]
) -> None:
    for name in ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS"):
        monkeypatch.setenv(name, "theirs")
    submit(tmp_path, profile=profile)
    assert {name for name in slurm.environment() if name.startswith("SBATCH_")} == kept
