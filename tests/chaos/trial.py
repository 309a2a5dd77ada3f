"""A trial for real: `distft train`, killed as planned, started again until it is done, and compared bit for bit."""

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
from tests.e2e.command import Started, Workplace, about, checkpoints, eval_losses, losses, records, until

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
        ]

    def undisturbed(self, configuration: Configuration) -> Path:
        run = self.place.folder / f"undisturbed-{configuration}"
        with self._locks[configuration]:  # trials may run side by side
            if not (run / "final").exists():
                ended = self.place.run(*self.command(configuration, run))
                assert ended.code == 0, ended.err
        return run

    def run(self, trial: Trial) -> Result:
        run = self.place.folder / f"trial-{trial.number}"
        command, killed, wrong = self.command(trial.configuration, run), 0, []
        for kill in trial.kills:
            place = {"DISTFT_FAILPOINT": f"{kill.rank}:{kill.place}"} if kill.place else {}
            with self.place.start(*command, environment=place) as attempt:
                if kill.place is None:
                    strike(attempt, run, kill)
                code = attempt.end(300.0).code
            killed += code != 0
            if (run / "run.json").exists() and (damage := missing_commit(run)):
                wrong.append(damage)
        ended = self.place.run(*command)
        if ended.code != 0:
            return Result(trial, killed, 0, [*wrong, f"it did not continue: {ended.err[-500:]}"])
        wrong += differences(run, self.undisturbed(trial.configuration))
        return Result(trial, killed, sum(len(values) - 1 for values in losses(run).values()), wrong)


def strike(attempt: Started, run: Path, kill: Kill) -> None:
    """Wait for the moment, and kill; nothing where the run ends before."""

    def reached() -> bool:
        return attempt.process.poll() is not None or max(losses(run), default=0) >= kill.step

    until(reached, f"step {kill.step} of {run}", 300.0, every=0.002)
    time.sleep(kill.seconds)
    if attempt.process.poll() is not None:
        return
    if kill.victim == "parent":
        attempt.send(signal.SIGKILL)
        return
    for rank, process in attempt.ranks().items():
        if kill.victim == "all ranks" or rank == kill.rank:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def missing_commit(run: Path) -> str | None:
    """What was recorded as saved must still be there: this checkpoint, or a newer one."""
    saved = max((record["step"] for record in records(run) if "save_seconds" in record), default=0)
    newest = max((int(path.name[5:]) for path in checkpoints(run)), default=0)
    return f"step {saved} was saved, and the newest checkpoint is {newest}" if newest < saved else None


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
