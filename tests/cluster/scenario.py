"""Runs on a real SLURM: submitted, disturbed, and compared with one that nobody disturbed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.command import RANK_NAME, about, losses, records, shards, until

ROOT = Path(__file__).parents[2]
DISTFT = Path(sys.executable).with_name("distft")
DEVCLUSTER = ROOT / "slurm" / "devcluster" / "devcluster"
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
SAMPLE = ROOT / "distft" / "sample" / "conversations.jsonl"
STEPS, EVERY = 60, 15
SECONDS = 240.0  # for a run of 60 steps with a few attempts, on two cores
LONG_SECONDS = 600.0
AT = EVERY + 8  # a step between two checkpoints
HIGH = ("--partition=high", "--nodes=4", "--exclusive", "--time=1", "--wrap=sleep 4")

RECIPE = """\
model:
  init:
    architecture: llama
    vocab_size: 400
    config: {{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
             num_key_value_heads: 2, max_position_embeddings: 128, tie_word_embeddings: true}}
data: {{train: {data}, row_tokens: 128{fields}}}
train: {{steps: {steps}, lr: 1.0e-3, global_batch: 16, micro_batch: 2}}
engine: {{dtype: fp32, timeout: 120}}
checkpoint: {{every: {every}, keep: 2}}
"""
LORA = ("adapter={type: lora, r: 4, alpha: 8, dropout: 0.1}", "engine.zero_stage=2")
FULL = ("adapter={type: none}", "engine.zero_stage=3")
TASKS = f"""{{type: multi-task, tasks: {{
  entities: {{task: {{type: token-classification, crf: true}}, train: {SAMPLE.parent}/entities.conll,
              eval: {SAMPLE.parent}/entities-heldout.conll}},
  opinion: {{task: {{type: sequence-classification}}, train: {SAMPLE.parent}/reviews.tsv,
             eval: {SAMPLE.parent}/reviews-heldout.tsv, columns: [text, label]}}}}}}"""
BERT = """{architecture: bert, vocab_size: 400, config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2,
  num_attention_heads: 2, max_position_embeddings: 128}}"""
HEADS = (f"task={TASKS}", f"model.init={BERT}", "data={row_tokens: 64}", "train.head_lr=1e-2", "engine.zero_stage=1")
LONG = ("train.steps=2500", "checkpoint.every=250")  # three minutes
VARIANTS = {
    "lora-zero2": LORA,
    "full-zero3": FULL,
    "lora-zero2-long": (*LORA, *LONG),
    "full-zero3-long": (*FULL, *LONG, "train.steps=900"),
    "one-node-long": (*LORA, *LONG, "--nodes=1"),
    "two-tasks": (*HEADS, "train.eval_every=20", "train.best=entities.f1"),
    "four-nodes": (*LORA, "--nodes=4"),
}


def environment(folder: Path) -> dict[str, str]:
    """For commands that speak to the devcluster and keep all they cache in `folder`."""
    return {
        **os.environ,
        "SLURM_CONF": os.environ.get("DISTFT_DEVCLUSTER", "/run/distft-devcluster") + "/slurm.conf",
        "DISTFT_SITE": str(ROOT / "slurm" / "sites" / "devcluster.toml"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HOME": str(folder / "huggingface"),
        "PATH": f"{DISTFT.parent}:{os.environ['PATH']}",
    }


@dataclass
class Cluster:
    """The devcluster, and a folder in which runs are submitted to it."""

    folder: Path
    environment: dict[str, str]
    unbroken: dict[str, Path] = field(default_factory=dict)
    user: str | None = None
    distft: list[str | Path] = field(default_factory=lambda: [DISTFT])

    def __post_init__(self) -> None:
        real = GSM8K.exists() and os.environ.get("DISTFT_GSM8K") == "1"
        fields = ", fields: {prompt: question, completion: answer}" if real else ""
        text = RECIPE.format(data=GSM8K if real else SAMPLE, fields=fields, steps=STEPS, every=EVERY)
        (self.folder / "recipe.yaml").write_text(text)
        lines = (GSM8K if real else SAMPLE).read_text(encoding="utf-8").splitlines(keepends=True)
        (self.folder / "eval.jsonl").write_text("".join(lines[:300]), encoding="utf-8")

    def site(self, name: str) -> Path:
        """A profile like the devcluster's, in another partition, with the lead signal or without."""
        partition, _, signal = name.partition("-")
        text = (ROOT / "slurm" / "sites" / "devcluster.toml").read_text()
        text = text.replace('partition = "low"', f'partition = "{partition}"')
        if signal == "nosignal":
            text = re.sub(r"signal_lead = \d+", "signal_lead = 0", text)
        path = self.folder / f"{name}.toml"
        path.write_text(text)
        return path

    def devcluster(self, *args: str) -> None:
        done = subprocess.run([DEVCLUSTER, *args], capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def of(self, user: str) -> Cluster:
        """The same cluster for somebody else, with a folder of theirs."""
        folder = self.folder / user
        folder.mkdir()
        environment = {**self.environment, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
        theirs = Cluster(folder, environment, self.unbroken, user, their_own_distft(folder / "env"))
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user, user)
        return theirs

    def all_idle(self) -> bool:
        return set(self.call("sinfo", "--noheader", "--format=%T", "--partition=low").split()) == {"idle"}

    def call(self, *args: str | Path, code: int = 0) -> str:
        command = [*self._as_user(), *map(str, args)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _as_user(self) -> list[str]:
        return ["runuser", "-u", self.user, "--"] if self.user else []

    def submit(self, name: str, variant: str = "lora-zero2", *more: str) -> Run:
        said = self.call(*self.distft, "submit", "recipe.yaml", f"--run-dir={name}", *VARIANTS[variant], *more)
        return Run(self, self.folder / name, variant, submitted(said))

    def reference(self, variant: str) -> dict[int, list[float]]:
        """Losses of the run that nobody disturbed; made once."""
        if variant not in self.unbroken:
            run = self.submit(f"unbroken-{variant}", variant)
            run.until_done(LONG_SECONDS)
            assert run.restarts() == 0
            if "engine.zero_stage=3" in VARIANTS[variant]:
                assert shards("".join(path.read_text() for path in run.path.glob("slurm/*_log.out")))
            self.unbroken[variant] = run.path
        return losses(self.unbroken[variant])


def their_own_distft(folder: Path) -> list[str | Path]:
    """An environment over the system's Python with our packages; ours may be where only root can look."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", folder], check=True)
    [packages] = folder.glob("lib/python3*/site-packages")
    assert packages.parent.name == f"python3.{sys.version_info.minor}", "the system has another Python"
    (packages / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    return [folder / "bin" / "python", "-m", "distft"]


@dataclass
class Run:
    """A run that was submitted."""

    cluster: Cluster
    path: Path
    variant: str
    job: str

    def scontrol(self) -> dict[str, str]:
        said = self.cluster.call("scontrol", "--oneliner", "show", "job", self.job)
        return dict(re.findall(r"(\w+)=(\S*)", said))

    def restarts(self) -> int:
        return int(self.scontrol()["Restarts"])

    def state(self) -> str:
        return self.scontrol()["JobState"]

    def status(self) -> dict[str, Any]:
        [found] = json.loads(self.cluster.call(*self.cluster.distft, "status", "--json", self.path))
        assert isinstance(found, dict)
        return found

    def output(self) -> str:
        return "".join(path.read_text() for path in sorted((self.path / "slurm").glob("*_log.out")))

    def until(self, condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
        try:
            until(condition, what, seconds, every=0.1)
        except AssertionError as error:
            logs = "\n".join(f"--- {p}\n{p.read_text()[-1500:]}" for p in sorted(self.path.glob("logs/*/*.log"))[-4:])
            raise AssertionError(f"{error}\n{self.scontrol()}\n{self.output()}\n{logs}") from None

    def until_step(self, step: int, attempt: int = 1) -> None:
        def there() -> bool:
            return any(r["step"] >= step and r["attempt"] >= attempt for r in records(self.path) if "loss" in r)

        self.until(there, f"step {step} in attempt {attempt}")

    def until_done(self, seconds: float = SECONDS) -> None:
        self.until(lambda: self.ended() == "done", "the run is done", seconds)
        self.until(lambda: self.state() == "COMPLETED", "the job has completed", 60.0)

    def ended(self) -> str:
        return str(about(self.path)["state"]) if (self.path / "run.json").exists() else ""

    def processes(self, wanted: Callable[[psutil.Process, dict[str, str]], bool]) -> list[psutil.Process]:
        """Processes of this run; the nodes' are visible from outside."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                if environment.get("DISTFT_RUN_DIR") == str(self.path) and wanted(process, environment):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def rank(self, number: int) -> psutil.Process:
        [found] = self.processes(lambda p, e: p.name() == f"{RANK_NAME}{number}")
        return found

    def fork_server(self, index: int) -> psutil.Process:
        [found] = self.processes(lambda p, e: p.name() == "distft-fork" and e.get("SLURM_NODEID") == str(index))
        return found

    def script(self) -> psutil.Process:
        """The batch script; what it exports is not yet in its environment."""
        for process in psutil.process_iter(["name"]):
            try:
                if process.info["name"] == "slurm_script" and process.environ().get("SLURM_JOB_ID") == self.job:
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        raise AssertionError(f"job {self.job} has no batch script")

    def parent(self, index: int) -> psutil.Process:
        [found] = self.processes(
            lambda p, e: e.get("SLURM_NODEID") == str(index) and "launchers.slurm.node" in p.cmdline()
        )
        return found

    def srun(self) -> psutil.Process:
        # srun starts a copy of itself
        found = self.processes(lambda p, e: p.name() == "srun")
        return min(found, key=lambda process: process.create_time())


def as_if_nothing_had_happened(run: Run, restarts: int) -> int:
    """Assert that a finished run equals the undisturbed one, bit for bit. Returns the number of steps trained twice."""
    wanted, found = run.cluster.reference(run.variant), losses(run.path)
    assert sorted(found) == sorted(wanted)
    for step, values in found.items():
        assert set(values) == set(wanted[step]), f"step {step}: {values} and not {wanted[step]}"
    assert run.restarts() == restarts
    order = [record["attempt"] for record in records(run.path) if "loss" in record]
    assert order == sorted(order), "an attempt recorded after the next one had begun"
    return sum(len(values) - 1 for values in found.values())


def preempt(cluster: Cluster) -> None:
    """A job of high priority that wants all nodes for a moment."""
    cluster.call("sbatch", "--parsable", "--output=/dev/null", *HIGH)


def disturbed(run: Run, event: str, act: Callable[[], object], *, lost: range, restarts: int = 1, at: int = AT) -> None:
    """Let something happen in the middle of a run, and compare what came out."""
    run.until_step(at)
    then = now()
    act()
    run.until_done(LONG_SECONDS)
    twice = as_if_nothing_had_happened(run, restarts)
    assert twice in lost, f"{twice} steps were lost"
    note(run, event, twice, resumed_after(run, then, attempt=2))


def resumed(run: Run) -> str:
    """Send it again. Returns the job."""
    said = run.cluster.call(*run.cluster.distft, "resume", run.path)
    return submitted(said)


def submitted(said: str) -> str:
    """The job that a command says it has sent."""
    found = re.search(r"job (\d+) submitted", said)
    assert found, said
    return found.group(1)


def resumed_after(run: Run, event: float, attempt: int) -> float:
    """Seconds from an event to the first step that a later attempt recorded."""
    return float(next(r["time"] for r in records(run.path) if r["attempt"] >= attempt and "loss" in r)) - event


def note(run: Run, event: str, lost: int, seconds: float) -> None:
    """A line of the table that docs/slurm.md shows, where the test is asked for it."""
    if target := os.environ.get("DISTFT_CLUSTER_NOTES"):
        with open(target, "a") as file:
            file.write(json.dumps({"variant": run.variant, "event": event, "lost": lost, "seconds": seconds}) + "\n")


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


def now() -> float:
    return time.time()
