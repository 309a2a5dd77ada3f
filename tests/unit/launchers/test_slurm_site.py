"""Site profiles: what they may contain, and that nothing in them changes what a batch script executes."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from launchers.slurm import preflight, script, site, submit
from launchers.slurm.script import Request
from launchers.slurm.site import Site

ROOT = Path(__file__).parents[3]
EXAMPLES = int(os.environ.get("DISTFT_FUZZ", "20"))
PLAIN: dict[str, Any] = {
    "partition": "p", "account": "a", "qos": "q", "constraint": "c", "reservation": "r", "exclude": "n1",
    "memory": "1G", "time": "10", "activate": "/env", "interface": "eth0", "dependency": "afterok:1", "wckey": "w",
    "modules": ["m"], "variables": {"A": "v"}, "sbatch": ["--licenses=l"], "srun": ["--mpi=none"], "shared": ["/"],
    "scratch": {"huggingface": "/s", "triton": "/s", "torch_extensions": "/s", "distft": "/s"},
    "mail": {"user": "u@x"}, "gpus": {"type": "t"},
}  # fmt: skip
IMAGE = {"image": "i", "mounts": ["/a:/b"], "python": "/p"}
PIECES = [
    "$(touch MARK)", "`touch MARK`", "\n", "\r", "'", '"', "\\", ";", "&&touch MARK", "|", "\0", "\x1b", "\xe9",
    "\u2028", "#SBATCH --uid=0", " ", "--", "%j", "${IFS}", "~", "*", "a", "0", "=", "/", ",", "-", "\u202e", "{a,b}",
    "!!", "$HOME", "\U0001d54f", "/a", "x:/y", "--x=",
]  # fmt: skip
NASTY = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=6).map("".join)


def request(profile: Site, run_dir: str = "/shared/run") -> Request:
    return Request("distft-x", Path(run_dir), Path(run_dir) / "slurm", profile, profile.nodes, profile.time)


def keys(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for key, value in values.items():
        found += keys(value, (*prefix, key)) if isinstance(value, dict) else [(*prefix, key)]
    return found


def changed(values: dict[str, Any], key: tuple[str, ...], new: str) -> dict[str, Any]:
    first, *rest = key
    if rest:
        return {**values, first: changed(values[first], tuple(rest), new)}
    return {**values, first: [new] if isinstance(values[first], list) else new}


def commands(text: str) -> list[str]:
    """What bash would run, a line each: only the names of what is exported, not the values."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [shlex.split(line)[1].split("=")[0] if line.startswith("export ") else line for line in lines]


def options(text: str) -> list[str]:
    """Names of sbatch's options; each line must be exactly one."""
    found = []
    for line in text.splitlines():
        if line.startswith("#SBATCH"):
            parts = shlex.split(line.removeprefix("#SBATCH"))
            assert len(parts) == 1, line
            found.append(parts[0].split("=")[0])
    return found


def assert_harmless(values: dict[str, Any], key: tuple[str, ...], new: str, folder: Path) -> bool:
    """Whether a value was taken; if so, it is text in the script and never a command."""
    try:
        profile = Site.model_validate(changed(values, key, new))
    except ValueError:
        return False
    text, before = script.text(request(profile)), script.text(request(Site.model_validate(values)))
    assert options(text).__len__() == options(before).__len__()
    assert len(text.splitlines()) == len(before.splitlines())
    if key[0] not in (
        "modules",
        "activate",
        "srun",
        "container",
    ):  # these are words of commands; they are executed below
        assert commands(text) == commands(before)
    if set(new) & set("$`;|&<>(){}'\"\\!*~#"):
        execute(text, folder)
    return True


def execute(text: str, folder: Path) -> None:
    """Run the script's lines in bash with nothing in reach, and see that nothing was made."""
    names = ("module", "srun", "scontrol", "squeue", "paste", "exec", "apptainer")
    stubs = "".join(f"{name}() {{ :; }}\n" for name in names)
    body = stubs + "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    subprocess.run(
        ["bash", "-c", body],
        cwd=folder,
        env={"HOME": "/nowhere", "PATH": os.environ["PATH"]},
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert list(folder.iterdir()) == []


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(key=st.sampled_from(keys(PLAIN)), new=NASTY)
@example(("activate",), "/$(touch MARK)")
@example(("variables", "A"), "'; touch MARK; '")
@example(("scratch", "triton"), "/a/${X:-$(touch MARK)}")
@example(("modules",), "x; touch MARK")
@example(("partition",), "a\n#SBATCH --uid=0")
def test_no_value_changes_what_is_executed(
    tmp_path_factory: pytest.TempPathFactory, key: tuple[str, ...], new: str
) -> None:
    assert_harmless(PLAIN, key, new, tmp_path_factory.mktemp("bash"))


@settings(max_examples=max(20, EXAMPLES // 5), deadline=None, database=None)
@given(key=st.sampled_from(keys(IMAGE)), new=NASTY, runtime=st.sampled_from(["pyxis", "apptainer"]))
def test_no_value_of_a_container_does(
    tmp_path_factory: pytest.TempPathFactory, key: tuple[str, ...], new: str, runtime: str
) -> None:
    values = {"container": {**IMAGE, "runtime": runtime}}
    assert_harmless(values, ("container", *key), new, tmp_path_factory.mktemp("bash"))


@settings(max_examples=max(20, EXAMPLES // 5), deadline=None, database=None)
@given(name=NASTY)
def test_names_of_variables_and_runs_are_names(name: str) -> None:
    for make in (
        lambda: Site.model_validate({"variables": {name: "v"}}),
        lambda: Recipe.model_validate(
            {"name": name, "model": {"path": "/m"}, "data": {"train": "/d"}, "train": {"steps": 1}}
        ),
    ):
        try:
            make()
        except ValueError:
            continue
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)


@settings(max_examples=max(20, EXAMPLES // 5), deadline=None, database=None)
@given(part=NASTY)
@example("a b")
@example("$(touch MARK)")
def test_a_run_folder_is_refused_or_quoted(tmp_path_factory: pytest.TempPathFactory, part: str) -> None:
    path = Path("/shared") / part
    if list(preflight.unprintable(path)):
        return
    text, before = (script.text(request(Site(), run_dir)) for run_dir in (str(path), "/shared/run"))
    assert len(text.splitlines()) == len(before.splitlines())
    assert len(options(text)) == len(options(before))
    execute(text, tmp_path_factory.mktemp("bash"))


@settings(max_examples=max(20, EXAMPLES // 5), deadline=None, database=None)
@given(new=NASTY)
def test_a_time_of_the_command_line_is_checked(new: str) -> None:
    try:
        profile = submit.overridden(Site(), {"time": new})
    except UserError:
        return
    assert preflight.seconds_of(profile.time) >= 0


@pytest.mark.parametrize("limit", ["UNLIMITED", "infinite", "-1", "1d", "1:2:3:4", "2h", " 5"])
def test_a_time_that_slurm_would_take_otherwise_is_refused_with_the_forms(limit: str, tmp_path: Path) -> None:
    told = (
        f"got {limit!r}; give a limit such as 90 (minutes), 4:00:00 or 2-12 (days-hours), or 0 for none, where the "
        "partition has none: such a job stops only when the run is over, or it is preempted or cancelled"
    )
    with pytest.raises(UserError) as raised:
        submit.overridden(Site(), {"time": limit})
    assert str(raised.value) == f"--time: {told}"
    (tmp_path / "x.toml").write_text(f'time = "{limit}"\n')
    with pytest.raises(UserError) as raised:
        site.load(tmp_path / "x.toml")
    assert str(raised.value).endswith(f"x.toml:1: time: {told}")
    for form in ("0", "90", "5:30", "4:00:00", "2-12", "2-12:30", "2-12:30:00"):
        assert submit.overridden(Site(), {"time": form}).time == form


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(UserError, match=r"^--time: got 'soon'; give a limit such as 90"):
        submit.overridden(Site(), {"time": "soon"})


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"variables": {"WANDB_API_KEY": "x"}},
        {"variables": {"HF_TOKEN": "x"}},
        {"variables": {"DB_PASSWORD": "x"}},
        {"variables": {"X": "hf_" + "a" * 30}},
        {"variables": {"X": "0123456789abcdef0123456789abcdef01234567"}},
        {"variables": {"http_proxy": "http://me:secret@proxy:1"}},
        {"setup": ["export WANDB_API_KEY=abc"]},
        {"setup": ["huggingface-cli login --token hf_" + "a" * 30]},
        {"sbatch": ["--comment=sk-aaaaaaaaaaaaaaaaaaaa"]},
    ],
)
def test_secrets_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="looks like a secret"):
        Site.model_validate(values)


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "SLURM_JOB_ID", "DISTFT_TOKEN", "SUBMITIT_EXECUTOR"])
def test_variables_of_others_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"set by distft or SLURM|secret"):
        Site.model_validate({"variables": {name: "1"}})


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "slurm" / "sites").glob("*.toml")), ids=lambda path: path.stem)
def test_the_profiles_of_the_repository_are_valid(path: Path) -> None:
    script.text(request(site.load(path)))


def test_every_problem_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('partition = "a b"\nnodse = 3\n\n[gpus]\ncount = 0\n')
    with pytest.raises(UserError) as caught:
        site.load(path)
    first, *rest = str(caught.value).splitlines()
    assert first == "not a valid site profile"
    assert [line.split(": ")[0] for line in sorted(rest)] == [f"{path}:1", f"{path}:2", f"{path}:5"]
    assert "did you mean nodes?" in str(caught.value)


def test_a_profile_is_found_by_name_by_file_and_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISTFT_SITE", raising=False)
    with pytest.raises(UserError, match="DISTFT_SITE"):
        site.find(None)
    (tmp_path / "slurm" / "sites").mkdir(parents=True)
    (tmp_path / "slurm" / "sites" / "mine.toml").write_text("nodes = 3\n")
    assert site.load(site.find("mine")).nodes == 3
    assert site.find("slurm/sites/mine.toml") == Path("slurm/sites/mine.toml")
    monkeypatch.setenv("DISTFT_SITE", "mine")
    assert site.find(None).name == "mine.toml"
    with pytest.raises(UserError, match="known profiles: mine"):
        site.find("other")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("30:15", 1815), ("1:02:03", 3723), ("1-12", 129600), ("1-12:30", 131400), ("2-00:00:01", 172801)],
)
def test_time_limits(text: str, seconds: float) -> None:
    assert preflight.seconds_of(Site(time=text).time) == seconds


# --- the script -------------------------------------------------------------------------------------------------------


def test_the_script_of_a_full_profile() -> None:
    profile = Site.model_validate({**PLAIN, "signal_lead": 77, "nodes": 3, "cpus": 8, "exclusive": True})
    text = script.text(request(profile))
    for line in (
        "#SBATCH --signal=USR2@77", "#SBATCH --wckey=w", "#SBATCH --nodes=3", "#SBATCH --ntasks-per-node=1",
        "#SBATCH --gres=gpu:t:1", "#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --licenses=l",
        "#SBATCH --reservation=r", "#SBATCH --exclusive", "#SBATCH --mail-user=u@x", "trap '' TERM USR1 USR2",
        "module load m", "export A=v", "export HF_HOME=/s", "export HF_HUB_OFFLINE=1", "export NCCL_SOCKET_IFNAME=eth0",
    ):  # fmt: skip
        assert line in text.splitlines(), line
    assert "-P -m launchers.slurm.policy $code; ended=$?" in text
    assert text.rstrip().endswith("exit $ended")
    assert "submitit.core" not in text


@pytest.mark.parametrize("container", [None, {**IMAGE, "runtime": "apptainer"}])
def test_no_python_of_a_job_looks_for_modules_in_the_current_folder(container: dict[str, Any] | None) -> None:
    profile = Site.model_validate({"container": container})
    for sent in (request(profile), dataclasses.replace(request(profile), module=preflight.PROBE)):
        started = [line for line in script.text(sent).splitlines() if "-m launchers" in line]
        assert [" -P -m " in line for line in started] == [True, True]


@pytest.mark.parametrize(("kills", "code", "runs"), [(0, 75, 1), (0, 1, 1), (1, 75, 2), (2, 0, 3), (3, 137, 3)])
def test_the_script_runs_the_policy_again_where_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int, code: int, runs: int
) -> None:
    policy = tmp_path / "python"
    policy.write_text(
        f"#!/bin/sh\necho $4 >> {tmp_path}/codes\n"
        f"[ $(wc -l < {tmp_path}/codes) -gt {kills} ] || kill -9 $$\nexit {code}\n"
    )
    policy.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(policy))
    shell = "\n".join(["(exit 75)", *script.teardown()])
    assert subprocess.run(["bash", "-c", shell], check=False, stderr=subprocess.DEVNULL).returncode == code
    assert (tmp_path / "codes").read_text().split() == ["75"] * runs


def test_no_signal_and_no_wckey_unless_asked_for() -> None:
    text = script.text(request(Site(signal_lead=0)))
    assert "--signal" not in text
    assert "wckey" not in text


# --- before sending ---------------------------------------------------------------------------------------------------


def recipe(tmp_path: Path, **train: Any) -> Recipe:
    for name in ("model", "train.jsonl"):
        (tmp_path / name).touch()
    values = {"name": "x", "model": {"path": str(tmp_path / "model")}, "data": {"train": str(tmp_path / "train.jsonl")}}
    return Recipe.model_validate({**values, "train": {"steps": 5, **train}})


def checked(tmp_path: Path, wanted: Recipe, **values: Any) -> list[str]:
    profile = Site.model_validate({"shared": ["/"], **values})
    return preflight.check(RunDir(tmp_path / "run"), wanted, profile, request(profile, str(tmp_path / "run")))


def test_what_fits_is_not_complained_about(tmp_path: Path) -> None:
    assert checked(tmp_path, recipe(tmp_path), nodes=2) == []


def test_all_that_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, global_batch=4, micro_batch=4)
    (tmp_path / "model").unlink()
    with pytest.raises(UserError) as caught:
        checked(tmp_path, wanted, nodes=3, shared=["/scratch"])
    text = str(caught.value)
    assert f"model.path: {tmp_path / 'model'} does not exist" in text
    assert "is not in a folder that the nodes share (/scratch" in text
    assert "train.global_batch 4 is not a multiple of micro_batch 4 x 3 ranks" in text


def test_a_hub_id_must_be_in_the_cache_of_nodes_without_internet(tmp_path: Path) -> None:
    wanted = recipe(tmp_path).model_copy(
        update={"model": recipe(tmp_path).model.model_copy(update={"path": "org/name"})}
    )
    scratch = {"huggingface": str(tmp_path / "hf")}
    with pytest.raises(UserError, match=r"model\.path: org/name is not in the hub's cache"):
        checked(tmp_path, wanted, scratch=scratch)
    assert checked(tmp_path, wanted, scratch=scratch, offline=False) == []
    snapshot = tmp_path / "hf" / "hub" / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    with pytest.raises(UserError, match=r"hf download org/name\)"):  # the nodes could not tell what main is
        checked(tmp_path, wanted, scratch=scratch)
    main = snapshot.parents[1] / "refs" / "main"
    main.parent.mkdir()
    main.write_text("abc")
    assert checked(tmp_path, wanted, scratch=scratch) == []
    data = wanted.model_copy(update={"data": wanted.data.model_copy(update={"train": "org/data", "revision": "v1"})})
    with pytest.raises(UserError, match=r"hf download org/data --repo-type dataset --revision v1\)"):
        checked(tmp_path, data, scratch=scratch)


def test_nodes_without_internet_need_the_commit_that_a_run_began_with(tmp_path: Path) -> None:
    wanted = recipe(tmp_path).model_copy(
        update={"model": recipe(tmp_path).model.model_copy(update={"path": "org/name"})}
    )
    folder = tmp_path / "hf" / "hub" / "models--org--name"
    for commit in ("old", "new"):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "config.json").touch()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("new")
    run = RunDir(tmp_path / "run")
    run.path.mkdir(exist_ok=True)
    run.hub.write_text('{"models/org/name@main": "old"}')
    scratch = {"huggingface": str(tmp_path / "hf")}
    assert checked(tmp_path, wanted, scratch=scratch) == []
    shutil.rmtree(folder / "snapshots" / "old")
    with pytest.raises(UserError, match=r"revision old of org/name is not in the hub's cache"):
        checked(tmp_path, wanted, scratch=scratch)


def test_tmp_is_not_shared_unless_the_profile_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "NOT_SHARED", (str(tmp_path),))
    with pytest.raises(UserError, match=r"run folder: .* exists on this machine only"):
        checked(tmp_path, recipe(tmp_path), shared=[])


def test_a_lead_that_cannot_fit_is_warned_of(tmp_path: Path) -> None:
    [warning] = checked(tmp_path, recipe(tmp_path), time="2", signal_lead=110)
    assert "leaves less than a minute" in warning
    run = RunDir(tmp_path / "run")
    run.create("x", "")
    run.metrics.write_text('{"step": 1, "loss": 1.0, "seconds": 90.0}\n{"step": 1, "save_seconds": 60.0}\n')
    [warning] = checked(tmp_path, recipe(tmp_path), time="1:00:00", signal_lead=120)
    assert "set it to 225 or more" in warning


GPUS = {"count": 8}
ONE_CPU = "one CPU unless the partition has another default; set cpus ="


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ({"gpus": GPUS}, f"gives a node's 8 ranks together {ONE_CPU} 64,"),
        ({"gpus": GPUS, "ranks": 2}, f"gives a node's 2 ranks together {ONE_CPU} 16,"),
        ({"gpus": {"count": 1}}, f"gives a node's rank {ONE_CPU} 8,"),
        ({"ranks": 4}, f"gives a node's 4 ranks together {ONE_CPU} 32,"),
        ({"gpus": GPUS, "sbatch": ["--exclusive=user"]}, f"{ONE_CPU} 64,"),
        ({"gpus": GPUS, "cpus": 1}, None),
        ({"gpus": GPUS, "exclusive": True}, None),
        ({"gpus": GPUS, "sbatch": ["--exclusive"]}, None),
        ({"gpus": GPUS, "sbatch": ["--cpus-per-gpu=12"]}, None),
        ({"ranks": 4, "sbatch": ["--licenses=x", "--cpus-per-task=8"]}, None),
        ({}, None),
        ({"ranks": 1}, None),
    ],
)
def test_a_profile_that_gives_many_ranks_one_core_is_warned_of(
    tmp_path: Path, profile: dict[str, Any], told: str | None
) -> None:
    found = checked(tmp_path, recipe(tmp_path, global_batch=16, micro_batch=1), **profile)
    if told is None:
        assert found == []
    else:
        [warning] = found
        assert warning.startswith("`cpus` is missing in the site profile, so SLURM gives a node's ")
        assert told in warning


def test_the_job_keeps_the_name_of_its_launcher(tmp_path: Path) -> None:
    asked = dataclasses.replace(request(Site()), launcher="big one")
    assert "export DISTFT_LAUNCHER='big one'" in script.text(asked).splitlines()
