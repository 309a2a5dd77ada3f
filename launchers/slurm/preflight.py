"""Checks on the login node, before a job waits a night for nothing."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from distft.errors import DONE, FAILED, UserError
from distft.plan.config import cache
from distft.recipe.load import check_sizes, dump
from distft.recipe.schema import Recipe
from distft.recipe.sources import is_pattern
from distft.run import tracking
from distft.run.batch import settled
from distft.run.commits import MAIN, Repository, read_commits, repositories
from distft.run.folder import RunDir
from launchers.slurm import scheduler, script
from launchers.slurm.place import hub_of, kinds, place_of
from launchers.slurm.script import Request
from launchers.slurm.site import Site

NOT_SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run")
CPU_OPTIONS = ("--cpus-per-task=", "--cpus-per-gpu=")  # of sbatch
CPUS_A_RANK = 8  # a usual share of a GPU node
ROOM_SECONDS = 60.0  # of training that a time limit should leave beside the signal's lead
PROBE = "launchers.slurm.probe"
PROBE_SECONDS = 300.0


def check(run: RunDir, recipe: Recipe, site: Site, request: Request) -> list[str]:
    """Warnings about a job that is to be sent.

    Raises:
        UserError: it cannot work; all reasons, a line each.
    """
    problems = [*unprintable(run.path), *missing(run, recipe, site), *unshared(run, recipe, site)]
    try:
        check_sizes(settled(run, recipe), request.nodes * site.ranks_a_node)
        tracking.check(recipe)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return [*lead_warning(run, site, request), *cpus_warning(site)]


def unprintable(path: Path) -> Iterator[str]:
    if not str(path).isprintable() or re.search(r"[%\\'\"]", str(path)):
        yield f"run folder {str(path)!r}: SLURM allows no quotes, %, \\ or line breaks in it; give another --run-dir"


def places(run: RunDir, recipe: Recipe) -> dict[str, Path]:
    """Everything on disk that the nodes must see, by what it is."""
    found = {"run folder": run.path, "environment (sys.prefix)": Path(sys.prefix)}
    named = {"model.path": recipe.model.path, **data_of(recipe)}
    named |= {"data.template": recipe.data.template, "data.cache": recipe.data.cache}
    return found | {key: Path(value) for key, value in named.items() if value is not None and os.path.isabs(value)}


def data_of(recipe: Recipe) -> dict[str, str]:
    """What is read, by its key: of parallel files each, of several tasks each."""
    found = {}
    for part in recipe.parts():
        key = ".".join(part.keys)
        for which, sources in (("train", part.train), ("eval", part.eval)):
            for number, source in enumerate(sources):
                name = f"{key}.{which}" + (f".{number}" if len(sources) > 1 else "")
                if isinstance(source.path, str):
                    found[name] = folder_of(source.path)
                else:
                    found.update({f"{name}.{column}": path for column, path in source.path.items()})
                if source.template is not None and source.template != recipe.data.template:
                    found[f"{name}.template"] = source.template
    return found


def folder_of(spec: str) -> str:
    """What must be there: of a pattern the last folder without signs, else the place itself."""
    if not is_pattern(spec) or os.path.exists(spec):
        return spec
    parts = Path(spec).parts
    return str(Path(*itertools.takewhile(lambda part: not is_pattern(part), parts)))


def missing(run: RunDir, recipe: Recipe, site: Site) -> Iterator[str]:
    """Files that are not there, and what the nodes, without internet, will not find in the hub's cache."""
    named = {"model.path": recipe.model.path, **data_of(recipe), "data.template": recipe.data.template}
    for key, value in named.items():
        if value is not None and os.path.isabs(value) and not os.path.exists(value):
            yield f"{key}: {value} does not exist"
    kept = read_commits(run)
    for key, repository in repositories(recipe) if site.offline else ():
        commit = kept.get(str(repository))
        if not in_cache(repository, commit, site):
            kind = " --repo-type dataset" if repository.kind == "dataset" else ""
            revision = commit or repository.revision
            which, wanted = (f" --revision {revision}", f"revision {revision} of ") if revision else ("", "")
            yield (
                f"{key}: {wanted}{repository.name} is not in the hub's cache, and the nodes have no internet; download "
                f"it here first (hf download {repository.name}{kind}{which}), or set offline = false in the site's "
                "profile"
            )


def in_cache(repository: Repository, commit: str | None, site: Site) -> bool:
    """Whether there is anything of a commit (None: of what the revision was when it was last downloaded)."""
    folder = (hub_of(site) or cache()) / f"{repository.kind}s--{repository.name.replace('/', '--')}"
    if commit is None:
        revision = repository.revision or MAIN
        noted = folder / "refs" / revision
        commit = noted.read_text(encoding="utf-8").strip() if noted.is_file() else revision
    return any((folder / "snapshots" / commit).glob("*"))


def unshared(run: RunDir, recipe: Recipe, site: Site) -> Iterator[str]:
    shared = [Path(os.path.expandvars(os.path.expanduser(folder))) for folder in site.shared]
    for what, path in places(run, recipe).items():
        real = Path(os.path.realpath(path))
        if what.startswith("environment") and site.container is not None:
            continue
        if shared and not any(real.is_relative_to(os.path.realpath(folder)) for folder in shared):
            listed = ", ".join(map(str, shared))
            yield f"{what}: {real} is not in a folder that the nodes share ({listed}: `shared` in the site profile)"
        elif not shared and any(real.is_relative_to(folder) for folder in NOT_SHARED):
            yield (
                f"{what}: {real} exists on this machine only; use a folder that the nodes share, "
                "or add it to `shared` in the site profile"
            )


def lead_warning(run: RunDir, site: Site, request: Request) -> Iterator[str]:
    """The signal's lead against the time limit, and against what a step and a save of this run took before."""
    limit = seconds_of(request.time)
    if site.signal_lead and 0 < limit < site.signal_lead + ROOM_SECONDS:
        yield f"the time limit of {request.time} leaves less than a minute before signal_lead ({site.signal_lead} s)"
    records = list(run.records())
    step = max((record["seconds"] for record in records[-200:] if "loss" in record), default=0.0)
    save = max((record["save_seconds"] for record in records if "save_seconds" in record), default=0.0)
    needed = 1.5 * (step + save)
    if site.signal_lead and needed > site.signal_lead:
        yield (
            f"a step ({step:.0f} s) and a save ({save:.0f} s) of this run do not fit into signal_lead = "
            f"{site.signal_lead}; set it to {needed:.0f} or more (the run still stops in time, by the clock)"
        )


def cpus_warning(site: Site) -> Iterator[str]:
    """SLURM's own default is one CPU per task, and each node runs one task, whatever the number of its ranks."""
    whole_nodes = site.exclusive or "--exclusive" in site.sbatch
    given = site.cpus or whole_nodes or any(line.startswith(CPU_OPTIONS) for line in site.sbatch)
    ranks = site.ranks_a_node
    if given or (ranks == 1 and site.gpus is None):
        return
    those = "a node's rank" if ranks == 1 else f"a node's {ranks} ranks together"
    yield (
        f"`cpus` is missing in the site profile, so SLURM gives {those} one CPU unless the partition has another "
        f"default; set cpus = {CPUS_A_RANK * ranks}, or what a node has for them"
    )


def planned(recipe: Recipe, site: Site, refuses: bool) -> list[str]:
    """A warning if the plan says that a job cannot fit into memory, or may not. Without a word from the profile about
    its GPU, or its memory for ranks on CPUs, there is no plan.

    Args:
        refuses: what cannot fit is not sent.

    Raises:
        UserError: it cannot fit, and `refuses`.
    """
    place = place_of(site)
    if place.unknown and kinds(site):
        return [f"whether it fits in memory is not known: {place.unknown[0]}"]
    if not place.is_known:
        return []
    from distft.plan.gate import judge  # a tenth of a second that most commands can do without

    found = judge(recipe, place)
    if found.refusal is not None and refuses:
        raise UserError(f"{found.refusal}; --anyway sends it all the same")
    return [sentence for sentence in (found.refusal, found.warning) if sentence is not None]


def preemption(run: RunDir, site: Site, settings: Mapping[str, str]) -> list[str]:
    """A warning where SLURM cancels the jobs that it preempts, and so starts none of them again.

    Args:
        settings: of the cluster; empty where they are not known.
    """
    if settings.get("PreemptType", "preempt/none") == "preempt/none":
        return []
    partitions = scheduler.partitions()
    highest = max((int(found.get("PriorityTier", "0")) for found in partitions), default=0)
    return [
        f"partition {found['PartitionName']} cancels preempted jobs instead of requeueing them; a preempted run "
        f"continues only by `distft resume {run.path}`{losses(site, found, settings)}"
        for found in partitions
        if is_meant(found, site)
        and "CANCEL" in (found.get("PreemptMode") or settings.get("PreemptMode", "")).split(",")
        and not (settings["PreemptType"] == "preempt/partition_prio" and int(found.get("PriorityTier", "0")) == highest)
    ]


def is_meant(partition: Mapping[str, str], site: Site) -> bool:
    """Whether a job may get into a partition."""
    flags = [line.partition("=")[2] for line in site.sbatch if line.startswith("--partition=")]
    wanted = site.partition or next(iter(flags), None) or os.environ.get("SBATCH_PARTITION")
    return partition["PartitionName"] in wanted.split(",") if wanted else partition.get("Default") == "YES"


def losses(site: Site, partition: Mapping[str, str], settings: Mapping[str, str]) -> str:
    """What a job loses that is preempted without a grace time, as the rest of a sentence."""
    told = site.signal_lead and "send_user_signal" in settings.get("PreemptParameters", "")
    if partition.get("GraceTime", "0") != "0" or told:
        return ""
    wait = settings.get("KillWait", "30 sec")
    return f"; there is no grace time, so the steps since the last checkpoint are lost if they are not saved in {wait}"


def seconds_of(text: str) -> float:
    """Of a time limit in one of SLURM's forms: minutes, m:s, h:m:s, d-h, d-h:m, d-h:m:s. 0: there is none."""
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        parts += [0] * (3 - len(parts))
    elif len(parts) < 3:
        parts = [0, *parts, *[0] * (2 - len(parts))]
    hours, minutes, seconds = parts
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def send_probe(request: Request, recipe: Recipe) -> int:
    """A short job in place of the run: what it sees is printed. Returns DONE where all nodes agree, and train."""
    folder = request.run_dir.parent / f".check-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    try:
        site = request.site.model_copy(update={"signal_lead": 0})  # a long one would end the check as it begins
        probe = dataclasses.replace(
            request, site=site, name="distft-check", run_dir=folder, folder=folder, time="5", module=PROBE, policy=False
        )
        job = script.send(probe)
        print(f"diagnostic job {job} submitted; waiting for it (Ctrl-C cancels it)", flush=True)
        try:
            ended = wait_for(job)
        except BaseException:
            scheduler.ask("scancel", job)
            raise
        for path in sorted(folder.glob("*_log.out")):
            print(path.read_text(encoding="utf-8", errors="replace"), end="")
        return DONE if ended and all((folder / name).exists() for name in ("agreed", "trained")) else FAILED
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(job: str) -> bool:
    """Until a job is gone from the queue; cancelled where it runs for too long."""
    began: float | None = None
    shown = ""
    while True:
        entries = scheduler.queued([job])
        if entries is None:  # it does not answer now
            time.sleep(1.0)
            continue
        entry = entries.get(job)
        if entry is None or entry.state in scheduler.ENDED:
            return True
        if entry.state == "PENDING" and entry.reason != shown:
            shown = entry.reason
            print(f"waiting: {shown}", flush=True)
        if entry.state == "RUNNING":
            began = began or time.monotonic()
            if time.monotonic() - began > PROBE_SECONDS:
                scheduler.ask("scancel", job)
                return False
        time.sleep(1.0)
