"""The real command line in real processes, on data and a model small enough for a test."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

DISTFT = Path(sys.executable).with_name("distft")
ERROR = "distft: error: "
START_SECONDS = 180.0  # for all imports and the first step, on a busy machine
STEPS = 60
RANK_NAME = "distft-rank-"  # of a process, in ps
EVERY = 20  # steps between checkpoints

RECIPE = """\
model:
  init:
    architecture: llama
    vocab_size: 300
    config: {hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
             num_key_value_heads: 2, max_position_embeddings: 64, tie_word_embeddings: true}
data: {train: train.jsonl, row_tokens: 64}
adapter: {type: lora, r: 4, alpha: 8, dropout: 0.1}
train: {steps: 60, lr: 1.0e-2, global_batch: 4, micro_batch: 2}
engine: {zero_stage: 2, dtype: fp32}
checkpoint: {every: 20, keep: 2}
"""


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What it says is wrong; AssertionError unless that is said once, last, and without a traceback."""
        assert "Traceback" not in self.err + self.out, self.err
        assert self.err.count(ERROR) == 1, self.err
        before, _, after = self.err.partition(ERROR)
        assert not before or before.endswith("\n"), self.err
        return after.strip()


def shards(said: str) -> bool:
    """Whether a run under ZeRO 3 sharded most of its weights, as it says at its start."""
    found = re.search(r"ZeRO 3: (\d+) of (\d+) weights are sharded", said)
    return found is not None and int(found[1]) > int(found[2]) / 2


@dataclass(frozen=True)
class Started:
    """A command that runs."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ranks(self) -> dict[int, psutil.Process]:
        """Its ranks by their number."""
        found = {}
        for child in psutil.Process(self.pid).children(recursive=True):
            try:
                if child.name().startswith(RANK_NAME):
                    found[int(child.name().removeprefix(RANK_NAME))] = child
            except psutil.NoSuchProcess:
                continue
        return found

    def end(self, seconds: float = START_SECONDS) -> Ended:
        """Wait for it."""
        code = self.process.wait(timeout=seconds)
        return Ended(code, self.out.read_text(), self.err.read_text())


class Workplace:
    """A folder with data, recipes and caches; commands run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()  # safe from several threads
        self.write_records("train.jsonl", 60)
        (folder / "recipe.yaml").write_text(RECIPE)

    def write_records(self, name: str, number: int, seed: int = 0) -> Path:
        chance = random.Random(seed)
        words = ["bike", "lamp", "button", "battery", "wheel", "ride", "mud", "rain", "city", "road"]
        records = [
            {"prompt": f"What of the {chance.choice(words)} {i}?", "completion": " ".join(chance.choices(words, k=8))}
            for i in range(number)
        ]
        path = self.folder / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": str(self.folder / "huggingface"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }

    @contextmanager
    def start(self, *args: str | Path, environment: Mapping[str, str] | None = None) -> Iterator[Started]:
        """`distft args`, killed if it still runs at the end; its ranks die with it."""
        number = next(self._numbers)
        out, err = (self.folder / f"command-{number}.{kind}" for kind in ("out", "err"))
        with open(out, "wb") as to_out, open(err, "wb") as to_err:
            process = subprocess.Popen(
                [DISTFT, *args],
                cwd=self.folder,
                env={**self.environment(), **(environment or {})},
                stdout=to_out,
                stderr=to_err,
            )
        try:
            yield Started(process, out, err)
        finally:
            process.kill()
            process.wait()

    def run(self, *args: str | Path) -> Ended:
        """`distft args` to its end."""
        with self.start(*args) as command:
            return command.end()


def until(condition: Callable[[], bool], what: str, seconds: float = START_SECONDS, every: float = 0.02) -> None:
    """Poll; AssertionError if `condition` does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(every)


def until_step(command: Started, run: Path, step: int) -> None:
    """Wait until `command` has recorded `step`."""

    def there() -> bool:
        assert command.process.poll() is None, f"it ended before step {step}:\n{command.err.read_text()}"
        return max(losses(run), default=0) >= step

    until(there, f"step {step} of {run}")


def records(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def losses(run: Path) -> dict[int, list[float]]:
    """Every loss recorded for each step, in order."""
    found: dict[int, list[float]] = {}
    for record in records(run):
        if "loss" in record:
            found.setdefault(record["step"], []).append(record["loss"])
    return found


def eval_losses(run: Path) -> list[float]:
    return [record["eval_loss"] for record in records(run) if "eval_loss" in record]


def about(run: Path) -> dict[str, Any]:
    """run.json."""
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


def checkpoints(run: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-*"))


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, in what the file holds and not in its size."""
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)
