"""`distft verify-resume`: a short run with kills must equal one without, bit for bit or within a tolerance."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console as RichConsole
from rich.table import Table
from safetensors import safe_open

from distft.checkpoint import store
from distft.errors import DONE, FAILED, UserError
from distft.process.console import Bar, Console
from distft.process.interpreter import running
from distft.recipe.adapters import AdaLora
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Comparison:
    """One kind of thing that both runs have, and how many of them differ."""

    what: str
    number: int
    different: int


@dataclass(frozen=True)
class Trial:
    """The command of both runs, without their folders.

    Attributes:
        tolerance: how far values may be apart, relative; 0: not in a bit, for which a GPU needs deterministic kernels.
    """

    command: tuple[str, ...]
    steps: int
    kills: int
    tolerance: float = 0.0
    seed: int = 0


def verify(config: Path, overrides: list[str], recipe: Recipe, trial: Trial) -> int:
    """Run both, print what differs. Returns DONE where nothing does; both folders are kept where something does.

    Raises:
        UserError: one of the runs ended before it was finished; with what it said.
    """
    settings = shortened(recipe, trial)
    command = (sys.executable, *running("distft", "train", str(config), *overrides, *settings, *trial.command))
    folder, equal = Path(tempfile.mkdtemp(prefix="distft-verify-")), True
    try:
        whole, broken = RunDir(folder / "undisturbed"), RunDir(folder / "killed")
        console = Console(first=True)
        with console.bar("undisturbed: step", trial.steps) as bar:
            attempt(command, whole, bar, until=None)
        moments = sorted(random.Random(trial.seed).sample(range(1, trial.steps), trial.kills))
        with console.bar("killed: step", trial.steps) as bar:
            for moment in [*moments, None]:
                attempt(command, broken, bar, until=moment)
        found = [compared(what, of(whole), of(broken), trial.tolerance) for what, of in PARTS.items()]
        equal = show_comparison(found, broken, moments)
    finally:
        if equal:
            shutil.rmtree(folder, ignore_errors=True)
    if not equal:
        print(f"both runs are kept: {folder}")
    return DONE if equal else FAILED


def shortened(recipe: Recipe, trial: Trial) -> list[str]:
    """The recipe with a few steps, a checkpoint between any two kills, and the samples recorded."""
    return [
        f"train.steps={trial.steps}",
        "train.epochs=null",
        f"train.warmup={min(recipe.train.warmup, trial.steps - 1)}",
        *(("adapter.tinit=null", "adapter.tfinal=null") if isinstance(recipe.adapter, AdaLora) else ()),
        f"checkpoint.every={max(1, trial.steps // (trial.kills + 3))}",
        *(("engine.deterministic=true",) if not trial.tolerance else ()),
        "track.wandb=off",
        "track.samples=true",
    ]


def attempt(command: tuple[str, ...], run: RunDir, bar: Bar, until: int | None) -> None:
    """One attempt: to its end, or killed after a step. The kill is of the parent, and its ranks die with it."""
    with open(run.path.with_suffix(".out"), "ab") as output:
        process = subprocess.Popen([*command, "--run-dir", str(run.path)], stdout=output, stderr=output)
    shown = 0
    try:
        while process.poll() is None:
            last = max((record["step"] for record in run.records() if "loss" in record), default=0)
            if last != shown:
                shown = last
                bar.at(last, "")
            if until is not None and last >= until:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(POLL_SECONDS)
        code = process.wait()
    finally:
        process.kill()
        process.wait()
    if code not in (DONE, -signal.SIGKILL):
        text = run.path.with_suffix(".out").read_text(errors="replace")
        said = text.rpartition("distft: error: ")[2].strip().splitlines()[-5:]
        raise UserError("\n".join([f"the run failed (exit code {code}):", *said]))


def read_losses(run: RunDir) -> dict[str, object]:
    """All values recorded for a step; one that was trained twice must have one value."""
    found: dict[str, set[float]] = {}
    for record in run.records():
        for key in ("loss", "grad_norm", "eval_loss"):
            if key in record:
                found.setdefault(f"{key} {record['step']}", set()).add(record[key])
    return dict(found)


def read_samples(run: RunDir) -> dict[str, object]:
    found: dict[str, set[str]] = {}
    for path in run.logs.glob("*/rank-*.samples.jsonl"):
        for line in path.read_text().splitlines():
            if line.endswith("}"):  # a kill cuts the last one off
                record = json.loads(line)
                key = f"step {record['step']}, micro-batch {record['micro_batch']}"
                found.setdefault(key, set()).add(json.dumps(record["samples"]))
    return dict(found)


def read_tensors(wanted: Callable[[str], bool]) -> Callable[[RunDir], dict[str, object]]:
    """The tensors in the last checkpoint whose kind is wanted."""

    def read(run: RunDir) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in store.committed(run.checkpoints)[0].glob("rank-*.safetensors"):
            with safe_open(path, framework="np") as file:
                names = [name for name in file.keys() if wanted(name.rpartition("|")[2])]  # noqa: SIM118
                found.update({name: file.get_tensor(name) for name in names})
        return found

    return read


PARTS: dict[str, Callable[[RunDir], dict[str, object]]] = {
    "losses and gradient norms": read_losses,
    "sample ids of micro-batches": read_samples,
    "weights (masters)": read_tensors(lambda kind: kind == "master"),
    "moments": read_tensors(lambda kind: kind not in ("master", "buffer")),  # and what AdaLoRA keeps
}


def compared(what: str, whole: dict[str, object], broken: dict[str, object], tolerance: float = 0.0) -> Comparison:
    keys = whole.keys() | broken.keys()
    return Comparison(what, len(keys), sum(not alike(whole.get(key), broken.get(key), tolerance) for key in keys))


def alike(one: object, other: object, tolerance: float) -> bool:
    """Whether two values, or all of two sets of values, are the same; numbers and tensors within `tolerance`."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if not tolerance or one.shape != other.shape:
            return one.shape == other.shape and one.tobytes() == other.tobytes()
        return bool(np.linalg.norm(one - other) <= tolerance * max(np.linalg.norm(one), np.linalg.norm(other)))
    if tolerance and isinstance(one, set) and isinstance(other, set) and one and other:
        values = sorted(one | other)
        if all(isinstance(value, float) for value in values):
            return bool(values[-1] - values[0] <= tolerance * max(abs(values[0]), abs(values[-1])))
    return one == other


def show_comparison(found: list[Comparison], broken: RunDir, moments: list[int]) -> bool:
    """A table of what differs. Returns whether nothing does, and there was something to compare."""
    table = Table("", "compared", "different", "verdict", box=None, header_style="dim")
    for one in found:
        equal = one.number > 0 and one.different == 0
        table.add_row(one.what, f"{one.number:,}", f"{one.different:,}", "equal" if equal else "NOT EQUAL")
    attempts = broken.read().attempts
    began = ", ".join(f"{a.first_step}" for a in attempts if a.first_step is not None)
    console = RichConsole(highlight=False)
    console.print(table)
    console.print(f"killed after steps {', '.join(map(str, moments))}; attempts began at steps {began}")
    return all(one.number > 0 and one.different == 0 for one in found)
