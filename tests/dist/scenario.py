"""Runs inside a rank: sessions of the real product, opened, advanced, saved and compared, many in one process.

Starting a process costs ten seconds of imports, so a matrix of configurations shares its ranks. What runs is
`setup.prepare`, `loop.step` and `loop.save` themselves.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as td

from distft.checkpoint.host_memory import HostMemory
from distft.process import distributed, lifetime
from distft.training import loop
from distft.recipe.schema import Recipe
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.load import dump, load
from distft.run.folder import RunDir
from distft.training.session import Session
from distft.training.setup import prepare

_numbers = itertools.count()


class Silent:
    def at(self, done: int, note: str) -> None:
        pass


class SlowMemory(HostMemory):
    """Copies when a step that does not wait would long have changed what is to be saved."""

    def copy(self, tensors: Any, stream: Any = None) -> Any:
        time.sleep(0.5)
        return super().copy(tensors, stream)


@dataclass
class Open:
    """A session and what it recorded."""

    session: Session

    @property
    def step(self) -> int:
        return self.session.progress.step

    def advance(self, steps: int) -> None:
        for _ in range(steps):
            loop.step(self.session, Silent())

    def save(self, slowly: bool = False) -> None:
        """Begin a checkpoint; what follows goes on while it is written."""
        if slowly:
            self.session.writer._memory = SlowMemory()
        loop.save(self.session)

    def close(self) -> None:
        self.session.feed.close()
        self.session.writer.wait()
        self.session.track.finish()
        self.session.engine.destroy()
        distributed.barrier()

    def state(self) -> dict[str, np.ndarray[Any, Any]]:
        """Everything this rank holds, copied: fragments by name, offset and kind, live weights, the step count."""
        engine = self.session.engine
        held = {
            f"{f.name}|{f.offset}|{kind}": tensor.clone().numpy()
            for f in engine.fragments()
            for kind, tensor in f.tensors.items()
        }
        held.update({f"{w.name}|{w.offset}|live": w.tensor.float().numpy().copy() for w in engine.live_weights()})
        held["steps"] = np.array(engine.steps_taken)
        return held


def open_run(folder: Path, config: Path, ranks: Ranks, *overrides: str) -> Open:
    """Create or continue the run in `folder`, as `distft train` would."""
    recipe: Recipe = load(config, list(overrides))
    run = RunDir(folder)
    if ranks.first and not run.exists():
        run.create("test", dump(recipe))
    if ranks.first:
        run.attempt_logs(1).mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    fresh = replace(ranks, store=td.PrefixStore(f"session{next(_numbers)}", ranks.store))
    session = prepare(run, recipe, fresh, Console(False))
    if recipe.engine.zero_stage == 3:
        sharded, total = session.engine.sharded_weights()
        assert sharded > total / 2, f"ZeRO 3 shards {sharded} of {total} weights only"
    return Open(session)


def losses(folder: Path) -> dict[int, list[float]]:
    """Every loss recorded for each step, in order."""
    found: dict[int, list[float]] = {}
    for record in RunDir(folder).records():
        if "loss" in record:
            found.setdefault(record["step"], []).append(record["loss"])
    return found


def samples(folder: Path) -> dict[int, list[Any]]:
    """What all ranks fed the model in each step: micro-batches in their global order."""
    found: dict[int, dict[int, Any]] = {}
    for path in sorted(RunDir(folder).logs.glob("*/rank-*.samples.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            assert record["micro_batch"] not in found.setdefault(record["step"], {}), f"fed twice: {record}"
            found[record["step"]][record["micro_batch"]] = record["samples"]
    return {step: [micros[index] for index in sorted(micros)] for step, micros in found.items()}


def same(left: dict[str, np.ndarray[Any, Any]], right: dict[str, np.ndarray[Any, Any]]) -> None:
    """AssertionError unless bitwise equal."""
    assert left.keys() == right.keys(), sorted(left.keys() ^ right.keys())[:4]
    different = [key for key in left if left[key].tobytes() != right[key].tobytes()]
    assert not different, f"{len(different)} of {len(left)} differ, {different[0]} first"


def everywhere(value: float) -> bool:
    """Whether `value` is zero on all ranks."""
    return distributed.sum_over_ranks([value]) == [0.0]


def join() -> Ranks:
    torch.set_num_threads(1)
    return distributed.init(600)


def leave() -> NoReturn:
    """End as a rank of the product does: a thread of gloo that outlives the interpreter may abort the process."""
    distributed.leave_group()
    lifetime.exit_at_once(0)
