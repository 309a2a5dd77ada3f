"""From the command on the login node to the job in the queue. SLURM's commands are small scripts here that keep one
queue between them; tests/cluster has the real ones."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from distft.cli.jobs import cancel, resume
from distft.cli.table import app
from distft.errors import UserError
from distft.launcher import CLUSTER, Job, Mode, Resources
from distft.recipe.load import dump
from distft.run import home
from distft.run.folder import Attempt, RunDir
from launchers.attempt import Verdict
from launchers.local import LocalLauncher
from launchers.slurm import jobs, node, preflight, scheduler, script, verdicts
from launchers.slurm.jobs import jobs_of
from launchers.slurm.script import Request
from launchers.slurm.site import Site
from launchers.slurm.submit import SlurmLauncher, after, refuse_second_job
from launchers.slurm.tags import tag
from tests.models.published import LLAMA_8B
from tests.unit.recipes import recipe

COMMANDS = {
    "sbatch": r"""
env > "$folder/environment"
number=$(($(cat "$folder/number") + 1)); echo $number > "$folder/number"
comment=$(sed -n "s/^#SBATCH --comment=//p" "$1" | tr -d "'")
touch "$folder/began"; sleep $(cat "$folder/slow" 2>/dev/null || echo 0)
echo "$number|PENDING|$comment" >> "$folder/queue"
echo "Submitted batch job $number"
""",
    "squeue": r"""
case "$*" in
    *%r*%k) sed "s/^\([^|]*|[^|]*\)|/\1|Priority|N\/A||/" "$folder/queue" ;;
    *%i*%k) cat "$folder/queue" ;;
    *%k) sed -n "s/^${2#*=}|[A-Z]*|//p" "$folder/queue" ;;
esac
""",
    "scancel": 'grep -v "^$1|" "$folder/queue" > "$folder/left"; mv "$folder/left" "$folder/queue"\n',
    "scontrol": r"""
case "$1" in
    update) number=${2#*=}; echo "$number|RUNNING|${3#*=}" > "$folder/queue" ;;
    *) cat "$folder/${@: -1}" 2>/dev/null ;;
esac
""",
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


def submit(folder: Path, name: str = "run", profile: str = "", **resources: object) -> RunDir:
    SlurmLauncher().launch(job(folder, name, profile, **resources))
    return RunDir(folder / name)


def attempt(number: str) -> Attempt:
    return Attempt(1, ["n1"], pid=1, world_size=1, zero_stage=2, start=1.0, end=2.0, job=number)


def test_a_profile_is_asked_for_in_the_script(slurm: Slurm, tmp_path: Path) -> None:
    wanted, run = job(tmp_path), str(tmp_path / "run")
    assert wanted.recipe is not None
    (tmp_path / "r.yaml").write_text(dump(wanted.recipe))
    first = ["submit", str(tmp_path / "r.yaml"), "--run-dir", run, "--site", str(tmp_path / "s.toml")]
    asked = {
        "7": [*first, "--profile", "5", "--trace"],
        "8": ["resume", run, "--profile", "2"],
        "9": ["resume", run],
    }
    for words in asked.values():
        assert CliRunner().invoke(app, words).exit_code == 0
        (slurm.folder / "queue").write_text("")
    exported = {
        number: [line for line in script.read_text().splitlines() if "DISTFT_PROFILE" in line]
        for number in asked
        for script in (tmp_path / "run" / "slurm").glob(f"{number}_submission.sh")
    }
    assert exported == {"7": ["export DISTFT_PROFILE='5 trace'"], "8": ["export DISTFT_PROFILE=2"], "9": []}


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


# --- whose job it is --------------------------------------------------------------------------------------------------


def test_a_copy_is_another_run_and_has_no_job(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = submit(tmp_path)
    record = run.read()
    (run.path / "lease.json").write_text("{}")
    copy = RunDir(Path(shutil.copytree(run.path, tmp_path / "copy")))
    with pytest.raises(UserError, match="has no pending or running job; there is nothing to cancel"):
        cancel(copy.path)
    assert f"{copy.path} is a copy of {run.path}: it is a run of its own now" in capsys.readouterr().out
    assert [line.split("|")[0] for line in slurm.queue()] == ["7"]
    assert copy.read().id != record.id
    assert copy.read().wandb_id != record.wandb_id
    assert (jobs_of(copy), (copy.path / "lease.json").exists()) == ([], False)
    assert run.read() == record
    submit(tmp_path, "copy")  # it can have its own
    assert [job.job for job in jobs.alive(copy)] == ["8"]
    assert [job.job for job in jobs.alive(run)] == ["7"]


def test_attempts_that_came_with_a_copy_are_not_its_jobs(slurm: Slurm, tmp_path: Path) -> None:
    run = submit(tmp_path)
    record = run.read()
    record.attempts = [attempt("7")]
    run.write(record)
    copy = RunDir(Path(shutil.copytree(run.path, tmp_path / "copy")))
    home.settle(copy)
    assert (jobs.job_ids(run), jobs.job_ids(copy)) == (["7"], [])
    record = copy.read()
    record.attempts.append(attempt("9"))
    copy.write(record)
    home.settle(copy)
    assert jobs.job_ids(copy) == ["9"]


def test_a_run_that_was_moved_is_the_same_run(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = submit(tmp_path)
    record = run.read()
    moved = RunDir(run.path.rename(tmp_path / "moved"))
    with pytest.raises(UserError, match=rf"job 7 of {moved.path} is pending already"):
        resume(moved.path)
    assert (moved.read().id, moved.read().home) == (record.id, str(moved.path))
    cancel(moved.path)
    assert slurm.queue() == []
    assert "copy" not in capsys.readouterr().out


def test_another_name_of_a_folder_is_no_copy(slurm: Slurm, tmp_path: Path) -> None:
    run = submit(tmp_path)
    before = run.json.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    cancel(tmp_path / "link" / "run")
    assert (slurm.queue(), run.json.read_bytes()) == ([], before)


@pytest.mark.parametrize(
    "comment", ["(null)", "", "distft=ab12:{path}", "by hand", "distft={id}", "|distft=ab12:{path}|"]
)
def test_a_job_with_the_runs_number_alone_is_anothers(slurm: Slurm, tmp_path: Path, comment: str) -> None:
    run = submit(tmp_path)
    said = comment.format(path=run.path, id=run.read().id)
    (slurm.folder / "queue").write_text(f"7|RUNNING|{said}\n")
    refuse_second_job(run)
    with pytest.raises(UserError, match="job 7 in the queue has not the run's tag in its comment, so it is another's"):
        cancel(run.path)
    with pytest.raises(UserError, match=r"--after: .* has no pending or running job; job 7 in the queue has not"):
        after(None, run.path)
    assert len(slurm.queue()) == 1


def test_a_job_that_was_sent_to_another_cluster_is_named_with_it(slurm: Slurm, tmp_path: Path) -> None:
    (slurm.folder / "config").write_text("AccountingStorageHost   = x\nClusterName             = red\n")
    run = submit(tmp_path)
    assert jobs_of(run)[0].cluster == "red"
    (slurm.folder / "config").write_text("ClusterName             = blue\n")
    (slurm.folder / "queue").write_text("7|RUNNING|somebody's\n")
    with pytest.raises(UserError, match=r"running job on this cluster \(blue\); its job 7 was sent to red"):
        cancel(run.path)


def test_the_profiles_comment_stays_before_the_tag(slurm: Slurm, tmp_path: Path) -> None:
    run = submit(tmp_path, "a | b", 'sbatch = ["--comment=project|42", "--licenses=l"]')
    assert slurm.queue() == [f"7|PENDING|project|42 distft={run.read().id}:{run.path}"]
    cancel(run.path)
    assert slurm.queue() == []


def test_a_diagnostic_job_has_no_tag(tmp_path: Path) -> None:
    sent = Request("x", tmp_path, tmp_path, Site(), 1, "5", module=preflight.PROBE)
    assert "--comment" not in script.text(sent)
    assert "--comment=mine" in script.text(Request("x", tmp_path, tmp_path, Site(sbatch=["--comment=mine"]), 1, "5"))


@pytest.mark.parametrize(("comment", "wanted"), [("", "{tag}"), ("(null)", "{tag}"), ("mine", "mine {tag}")])
def test_a_job_of_a_script_by_hand_gets_the_tag_when_it_begins(
    slurm: Slurm, tmp_path: Path, comment: str, wanted: str
) -> None:
    run = RunDir(tmp_path / "run")
    run.create("x", "")
    (slurm.folder / "queue").write_text(f"12|RUNNING|{comment}\n")
    for _ in range(2):  # the job is started again
        jobs.mark("12", run.read(), run)
        [found] = scheduler.tagged() or []
        assert found.comment == wanted.format(tag=tag(run.read().id, run.path))
    assert [job.job for job in jobs.alive(run)] == ["12"]


def test_a_job_that_nobody_wrote_down_is_found_by_its_tag(slurm: Slurm, tmp_path: Path) -> None:
    """distft was killed between sbatch and jobs.json."""
    run = submit(tmp_path)
    (run.path / "slurm" / "jobs.json").unlink()
    with pytest.raises(UserError, match=rf"job 7 of {run.path} is pending already"):
        submit(tmp_path)
    assert after(None, run.path) == "afterok:7"
    cancel(run.path)
    assert slurm.queue() == []


# --- one at a time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [False, True], ids=["refused", "the answer was lost"])
def test_a_submit_that_fails_removes_only_what_it_made_and_what_has_no_job(
    slurm: Slurm, tmp_path: Path, lost: bool
) -> None:
    answers = COMMANDS["sbatch"] if lost else ""
    slurm.does("sbatch", f"{answers}\necho 'sbatch: error: Socket timed out' >&2\nexit 1\n")
    with pytest.raises(UserError, match="Socket timed out"):
        submit(tmp_path)
    assert (tmp_path / "run").exists() == lost
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="Socket timed out"):
        submit(tmp_path, "mine")
    assert (tmp_path / "mine").exists()


# --- what the command line had ----------------------------------------------------------------------------------------


def test_resume_keeps_what_the_submission_had_on_its_command_line(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = submit(tmp_path, nodes=2, nproc=2, time="30", max_restarts=4)
    (slurm.folder / "queue").write_text("")
    SlurmLauncher().launch(job(tmp_path, again=True, nodes=1))
    assert "as at the last submission: --time 30 --nproc 2 --max-restarts 4\n" in capsys.readouterr().out
    (slurm.folder / "queue").write_text("")
    SlurmLauncher().launch(job(tmp_path, again=True))
    for number, nodes in (("7", 2), ("8", 1), ("9", 1)):
        lines = (run.path / "slurm" / f"{number}_submission.sh").read_text().splitlines()
        for line in (f"#SBATCH --nodes={nodes}", "#SBATCH --time=30", "export DISTFT_RANKS=2",
                     "export DISTFT_MAX_RESTARTS=4"):  # fmt: skip
            assert line in lines
    (slurm.folder / "queue").write_text("")
    submit(tmp_path)  # a new submission begins with the profile
    assert (jobs_of(run)[-1].nodes, jobs_of(run)[-1].given) == (1, {})


def test_values_that_do_not_fit_together_are_named_by_their_options(slurm: Slurm, tmp_path: Path) -> None:
    gpus = 'gpus = {request = "gres", count = 2}'
    with pytest.raises(UserError, match=r"^--nproc: ranks 3 is more than the 2 GPUs of a node"):
        submit(tmp_path, profile=gpus, nproc=3)
    with pytest.raises(UserError, match=r"^--nodes, --nproc: ranks 3 is more than"):
        submit(tmp_path, profile=gpus, nproc=3, nodes=2)
    with pytest.raises(UserError, match=r"^--max-restarts: got -1"):
        submit(tmp_path, max_restarts=-1)


# --- the run at the same time elsewhere -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING"])
def test_a_run_that_has_a_job_is_not_trained_here(slurm: Slurm, tmp_path: Path, state: str) -> None:
    run = submit(tmp_path)
    (slurm.folder / "queue").write_text((slurm.folder / "queue").read_text().replace("PENDING", state))
    before = run.json.read_bytes()
    with pytest.raises(UserError, match=rf"job 7 of {run.path} is \w+ and would write to it; first: distft cancel"):
        LocalLauncher().launch(Job(run.path))
    assert run.json.read_bytes() == before
    LocalLauncher().launch(Job(run.path, mode="prepare"))  # in the batch script itself


@pytest.mark.parametrize("answers", [True, False])
def test_a_run_whose_job_is_over_or_not_known_is_trained_here(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], answers: bool
) -> None:
    run = submit(tmp_path)
    slurm.does("squeue", "" if answers else "exit 1\n")
    record = run.read()
    record.state = "done"  # so that nothing has to be trained
    run.write(record)
    assert LocalLauncher().launch(Job(run.path)) == 0
    said = capsys.readouterr().out
    assert ("warning: whether a job of" in said) == (not answers)
    assert f"{run.path} is finished" in said


def test_a_job_of_a_run_that_was_moved_does_not_make_its_folder_again(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit(tmp_path)
    left = verdicts.Verdicts(node.folder(run, "7", 0), 0, 1)
    left.of(1).leave(Verdict(1, "x"))
    left.leave(Verdict(1, "x"))
    assert [verdict.cause for verdict in (left.of_leader(), left.of(1).of_leader()) if verdict] == ["x", "x"]
    run.path.rename(tmp_path / "moved")
    left.of(2).leave(Verdict(1, "x"))
    left.leave(Verdict(1, "x"))
    place = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "DISTFT_HOSTS": "n1", "DISTFT_RUN_DIR": str(run.path)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(node.lease, "hold_run", pytest.fail)
    with pytest.raises(UserError, match=r"has disappeared or was moved; resume it from where it is now$"):
        node.main()
    assert not run.path.exists()


# --- preemption -------------------------------------------------------------------------------------------------------

TIERS = "PartitionName=high PriorityTier=9 PreemptMode=OFF GraceTime=0\n"
LOST = "; there is no grace time, so the steps since the last checkpoint are lost if they are not saved in 30 sec"


@pytest.mark.parametrize(
    ("config", "partition", "warned"),
    [
        ("", "PreemptMode=CANCEL GraceTime=60", ""),
        ("", "PreemptMode=CANCEL GraceTime=0", LOST),
        ("PreemptParameters = send_user_signal\n", "PreemptMode=CANCEL GraceTime=0", ""),
        ("PreemptMode = GANG,CANCEL\n", "GraceTime=60", ""),
        ("PreemptMode = CANCEL\n", "PreemptMode=REQUEUE GraceTime=0", None),
        ("", "PreemptMode=CANCEL GraceTime=0 PriorityTier=9", None),  # nothing is above it
    ],
)
def test_a_partition_that_cancels_what_it_preempts_is_warned_of(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, partition: str, warned: str | None
) -> None:
    (slurm.folder / "config").write_text(f"PreemptType = preempt/partition_prio\nKillWait = 30 sec\n{config}")
    (slurm.folder / "partition").write_text(f"{TIERS}PartitionName=low Default=YES {partition}\n")
    run = submit(tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    wanted = (
        "warning: partition low cancels preempted jobs instead of requeueing them; a preempted run continues only by "
        f"`distft resume {run.path}`"
    )
    assert said == ([] if warned is None else [wanted + warned])


@pytest.mark.parametrize(("profile", "warned"), [('partition = "low,high"', True), ('partition = "high"', False)])
def test_only_the_partitions_that_are_meant_are_looked_at(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], profile: str, warned: bool
) -> None:
    (slurm.folder / "config").write_text("PreemptType = preempt/partition_prio\n")
    (slurm.folder / "partition").write_text(f"{TIERS}PartitionName=low PreemptMode=CANCEL GraceTime=9 PriorityTier=1\n")
    submit(tmp_path, profile=profile)
    assert ("warning: partition low" in capsys.readouterr().out) == warned


def test_a_dry_run_asks_slurm_nothing(slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        slurm.does(name, 'touch "$folder/asked"\n')
    mode: Mode = "show"
    SlurmLauncher().launch(dataclasses.replace(job(tmp_path), mode=mode))
    assert f"#SBATCH --comment=distft=ID:{tmp_path / 'run'}" in capsys.readouterr().out
    assert not (slurm.folder / "asked").exists()
    assert not (tmp_path / "run").exists()


# --- what cannot fit into memory --------------------------------------------------------------------------------------

TOO_SMALL = 'gpus = {count = 2, model = "a30_24gb"}\ncpus = 2\n'  # for 8 billion weights that are all trained
CANNOT = "it cannot fit: a rank takes at least "


@pytest.fixture
def large(slurm: Slurm, tmp_path: Path) -> Path:
    (tmp_path / "model").unlink()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA_8B))
    return tmp_path


def test_what_cannot_fit_is_not_sent_and_leaves_nothing(slurm: Slurm, large: Path) -> None:
    with pytest.raises(UserError) as raised:
        submit(large, profile=TOO_SMALL)
    said = str(raised.value)
    assert said.startswith(CANNOT)
    assert "(the memory of A30-24GB)" in said
    assert said.endswith("; --anyway sends it all the same")
    assert "\n" not in said
    assert (slurm.queue(), (large / "run").exists()) == ([], False)


def test_a_dry_run_warns_and_anyway_sends(slurm: Slurm, large: Path) -> None:
    wanted = job(large, profile=TOO_SMALL)
    assert wanted.recipe is not None
    (large / "r.yaml").write_text(dump(wanted.recipe))
    words = ["submit", str(large / "r.yaml"), "--run-dir", str(large / "run"), "--site", str(large / "s.toml")]
    for option, sent in (("--dry-run", 0), ("--anyway", 1)):
        done = CliRunner().invoke(app, [*words, option])
        assert (done.exit_code, done.output.count(f"warning: {CANNOT}"), len(slurm.queue())) == (0, 1, sent)


def test_resume_plans_where_other_resources_are_given(
    slurm: Slurm, large: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(large)
    (slurm.folder / "queue").write_text("")
    (large / "s.toml").write_text(f'shared = ["/"]\n{TOO_SMALL}')
    SlurmLauncher().launch(job(large, profile=TOO_SMALL, again=True))  # as before
    assert "fit" not in capsys.readouterr().out
    (slurm.folder / "queue").write_text("")
    other = job(large, profile=TOO_SMALL, again=True, nodes=1)
    with pytest.raises(UserError, match=CANNOT):
        SlurmLauncher().launch(other)
    with pytest.raises(UserError, match=CANNOT):
        SlurmLauncher().launch(job(large, profile=TOO_SMALL, again=True, site=str(large / "s.toml")))
    assert slurm.queue() == []
    SlurmLauncher().launch(dataclasses.replace(other, anyway=True))
    assert len(slurm.queue()) == 1
    assert f"warning: {CANNOT}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("gpus = {count = 2}", None),
        ('gpus = {count = 2, type = "v100"}', None),
        ('gpus = {count = 2, type = "a100"}', "gpus.type a100 of the site profile may be one of A100-80GB, A100-40GB"),
        ('memory = "0"', None),
    ],
)
def test_what_the_plan_cannot_say_is_no_reason_not_to_send(
    slurm: Slurm, large: Path, capsys: pytest.CaptureFixture[str], profile: str, said: str | None
) -> None:
    submit(large, profile=f"{profile}\ncpus = 2")
    assert len(slurm.queue()) == 1
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]
