"""Ranks that train with and without a profile.

python -m tests.dist.profiles FOLDER CONFIG few|zero3
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from distft.process import environment
from distft.process.distributed import Ranks
from distft.training import loop
from tests.dist import scenario

STEPS = 7
SLOW_SECONDS = 0.2  # of rank 1 in each of four micro-batches, where it is the slow one: more than a busy machine takes
ZERO3 = ("engine.zero_stage=3", "model.activation_checkpointing=true", "engine.loss_chunk=0")


class Slow:
    """A task that takes its time."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        time.sleep(SLOW_SECONDS)
        found: dict[str, torch.Tensor] = self._task.loss(model, batch)
        return found


def main() -> None:
    folder, config, ranks = Path(sys.argv[1]), Path(sys.argv[2]), scenario.join()
    layout = (f"train.steps={STEPS}", *(ZERO3 if sys.argv[3] == "zero3" else ()))
    train(folder / "plain", config, ranks, "", layout)
    train(folder / "profiled", config, ranks, "50" if sys.argv[3] == "zero3" else "3 trace", layout)
    if sys.argv[3] == "few":
        train(folder / "slow", config, ranks, "2", ["train.steps=4"], slow=True)
        train(folder / "stopped", config, ranks, "3", layout, stops=4)
    scenario.leave()


def train(
    folder: Path,
    config: Path,
    ranks: Ranks,
    wanted: str,
    overrides: Sequence[str],
    slow: bool = False,
    stops: int | None = None,
) -> None:
    """A run to its end. `stops`: the step in which it is told to stop, as a signal would."""
    os.environ[environment.PROFILE] = wanted
    opened = scenario.open_run(folder, config, ranks, *overrides)
    session = opened.session
    if slow and ranks.rank == 1:
        session.task = Slow(session.task)
    if stops is not None:
        session.is_to_stop = lambda: session.progress.step + 1 >= stops
    code = loop.train(session)
    hooks = sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in session.engine.model.modules())
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps({"code": code, "hooks": hooks}))
    opened.close()


if __name__ == "__main__":
    main()
