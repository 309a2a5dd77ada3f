"""A trial for real: `distft train`, killed as planned until it is done, and compared bit for bit.

Ranks that are killed are started again within the command; a command that is killed, or gives up because two attempts
in a row committed nothing, is given again.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.plan import EVAL_EVERY, EVERY, STEPS, Configuration, Kill, Trial
from tests.dist.exactness import DROPOUT
from tests.e2e.command import Started, Workplace, about, checkpoints, eval_losses, losses, records, shards, until

ADAPTERS = {"lora": "adapter={type: lora, r: 4, alpha: 8, dropout: 0.1}", "full": "adapter={type: none}"}


@dataclass(frozen=True)
class Result:
    """What a trial came to; `wrong` is empty where the run came out as if nothing had happened."""

    trial: Trial
    killed: int  # kills that hit; the others came when the run had ended
    lost: int  # steps that were trained twice
    wrong: list[str]


class Ground:
    """A folder for trials, with the undisturbed run of each configuration."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.place = Workplace(folder)
        self.place.write_records("eval.jsonl", 20, seed=1)
        self._locks: defaultdict[Configuration, threading.Lock] = defaultdict(threading.Lock)

    def command(self, configuration: Configuration, run: Path) -> list[str | Path]:
        return [
            "train",
            "recipe.yaml",
            ADAPTERS[configuration.adapter],
            *([DROPOUT["full"]] if configuration.adapter == "full" else []),
            f"engine.zero_stage={configuration.zero_stage}",
            f"engine.dtype={configuration.dtype}",
            "train.micro_batch=1",
            f"train.steps={STEPS}",
            f"train.eval_every={EVAL_EVERY}",
            "data.eval=eval.jsonl",
            f"checkpoint.every={EVERY}",
            f"--run-dir={run}",
            f"--nproc={configuration.ranks}",
            "--max-restarts=9",
        ]

    def undisturbed(self, configuration: Configuration) -> Path:
        run = self.place.folder / f"undisturbed-{configuration}"
        with self._locks[configuration]:  # trials may run side by side
            if not (run / "final").exists():
                ended = self.place.run(*self.command(configuration, run))
                assert ended.code == 0, ended.err
                assert configuration.zero_stage != 3 or shards(ended.err)
        return run

    def run(self, trial: Trial) -> Result:
        run = self.place.folder / f"trial-{trial.number}"
        for _ in range(len(trial.kills) + 1):
            with self.place.start(*self.command(trial.configuration, run), environment=failpoints(trial)) as command:
                disturb(command, run, trial)
                ended = command.end(600.0)
            if ended.code == 0:
                break
        killed = len(about(run)["attempts"]) - 1
        wrong = [] if killed <= len(trial.kills) else ["an attempt ended that was not killed"]
        if ended.code != 0:
            return Result(trial, killed, 0, [*wrong, f"it did not continue: {ended.err[-500:]}"])
        wrong += missing_commits(run) + differences(run, self.undisturbed(trial.configuration))
        return Result(trial, killed, sum(len(values) - 1 for values in losses(run).values()), wrong)


def disturb(command: Started, run: Path, trial: Trial) -> None:
    """Kill in the attempts that come, as far as this command starts them."""
    made = len(about(run)["attempts"]) if (run / "run.json").exists() else 0
    for attempt, kill in list(enumerate(trial.kills, start=1))[made:]:
        if kill.place is None:
            strike(command, run, attempt, kill)


def failpoints(trial: Trial) -> dict[str, str]:
    """Kills at places, each in the attempt that follows the kill before."""
    placed = [f"{n}/{kill.rank}:{kill.place}" for n, kill in enumerate(trial.kills, start=1) if kill.place]
    return {"DISTFT_FAILPOINT": ";".join(placed)} if placed else {}


def strike(command: Started, run: Path, attempt: int, kill: Kill) -> None:
    """Wait for the moment in an attempt, and kill; nothing where the run ends before."""

    def reached() -> bool:
        mine = [record["step"] for record in records(run) if record["attempt"] == attempt and "loss" in record]
        return command.process.poll() is not None or max(mine, default=0) >= kill.step

    until(reached, f"step {kill.step} of attempt {attempt} of {run}", 300.0, every=0.005)
    time.sleep(kill.seconds)
    if command.process.poll() is not None:
        return
    if kill.victim == "parent":
        command.send(signal.SIGKILL)
        return
    for rank, process in command.ranks().items():
        if kill.victim == "all ranks" or rank == kill.rank:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def missing_commits(run: Path) -> list[str]:
    """What was recorded as saved must be there when the next attempt begins: this checkpoint, or a newer one."""
    saves = [record for record in records(run) if "save_seconds" in record]
    found = []
    for attempt in about(run)["attempts"]:
        saved = max((record["step"] for record in saves if record["attempt"] < attempt["number"]), default=0)
        if attempt["commit_before"] < saved:
            found.append(f"step {saved} was saved, and attempt {attempt['number']} found {attempt['commit_before']}")
    return found


def differences(run: Path, undisturbed: Path) -> list[str]:
    """What is not as if nothing had happened: losses, evaluations, masters, moments, exported weights, attempts."""
    found = []
    wanted, got = losses(undisturbed), losses(run)
    if sorted(got) != sorted(wanted):
        found.append(f"steps {sorted(wanted.keys() ^ got.keys())}")
    different = [step for step in wanted if set(got.get(step, [])) != set(wanted[step])]
    if different:
        found.append(f"losses of steps {different}")
    if set(eval_losses(run)) != set(eval_losses(undisturbed)):
        found.append("held-out losses")
    for part in (checkpoints(undisturbed)[-1].relative_to(undisturbed), Path("final")):
        if digests(run / part) != digests(undisturbed / part):
            found.append(f"the tensors in {part}")
    for attempt in about(run)["attempts"]:
        if attempt["first_step"] not in (None, attempt["commit_before"] + 1):
            found.append(f"attempt {attempt['number']} began at step {attempt['first_step']}")
    return found


def digests(folder: Path) -> dict[str, str]:
    """Of the tensors of a checkpoint or an export; masters, moments and buffers are in them."""
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    assert files, f"no tensors in {folder}"
    if (state := folder / "state.json").exists():
        files["state.json"] = json.dumps(
            {**json.loads(state.read_text()), "identity": None, "written_by": None}, sort_keys=True
        )
    return files
