"""What a step costs beside forward and backward: the product's loop and engine beside a plain torch loop.

    python -m benchmarks.step_cost [--steps 12] [--rounds 3] [--json FILE]         ten minutes; one process, CPU

A Qwen2 of 8.6 million parameters (hidden 256, 8 layers, vocabulary 9,008), packed rows of 1,024 tokens of GSM8K, fp32,
one rank, one thread. Both sides prepare the same run and take turns, step by step. The plain loop has the same batches
and the same losses, then `clip_grad_norm_` and a fused AdamW. CPU and wall seconds of a step, medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as td

from distft.process import distributed
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.load import dump, load
from distft.run.folder import RunDir
from distft.tasks.protocol import collated
from distft.training import loop
from distft.training.session import Session
from distft.training.setup import prepare

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
RECIPE = """\
model:
  init:
    architecture: qwen2
    vocab_size: 9008
    config: {{hidden_size: 256, intermediate_size: 768, num_hidden_layers: 8, num_attention_heads: 4,
              num_key_value_heads: 4, max_position_embeddings: 2048, tie_word_embeddings: true}}
data: {{train: {data}, fields: {{prompt: question, completion: answer}}, row_tokens: 1024, cache: {cache}}}
train: {{steps: 10000, lr: 1.0e-4, schedule: constant, global_batch: {batch}, micro_batch: 1}}
engine: {{zero_stage: 0, dtype: fp32}}
"""
ADAPTERS = {"full": "adapter={type: none}", "lora": "adapter={type: lora, r: 16, alpha: 32, targets: all-linear}"}


class Silent:
    def at(self, done: int, note: str) -> None:
        pass


@contextlib.contextmanager
def opened(folder: Path, recipe: Path, ranks: Ranks, *overrides: str) -> Iterator[Session]:
    settings = load(recipe, list(overrides))
    run = RunDir(folder)
    run.create("step-cost", dump(settings))
    run.attempt_logs(1).mkdir(parents=True, exist_ok=True)
    session = prepare(run, settings, replace(ranks, store=td.PrefixStore(folder.name, ranks.store)), Console(False))
    try:
        yield session
    finally:
        session.feed.close()
        session.track.finish()
        session.engine.destroy()


class Phases:
    """CPU seconds of parts of a step, the last first."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self._spent: dict[str, float] = {}

    @contextlib.contextmanager
    def spending(self, name: str) -> Iterator[None]:
        begin = time.process_time()
        yield
        self._spent[name] = self._spent.get(name, 0.0) + time.process_time() - begin

    def end_step(self) -> None:
        for name, spent in self._spent.items():
            self.parts.setdefault(name, []).append(spent)
        self._spent.clear()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time a method of one object."""
        work = getattr(owner, method)

        def timed(*given: Any, **options: Any) -> Any:
            with self.spending(name):
                return work(*given, **options)

        setattr(owner, method, timed)

    def medians(self) -> dict[str, float]:
        return {name: round(1000 * statistics.median(values[2:]), 2) for name, values in self.parts.items()}


def plain_step(session: Session, model: Any, optimizer: torch.optim.Optimizer, phases: Phases, number: int) -> None:
    """By torch alone, but for the batch and the losses of a task."""
    task, clip = session.task, session.recipe.train.clip
    micros = list(session.loader.step(number))
    batches = [collated(task, session.loader.documents(micro), session.ranks.device) for micro in micros]
    counts = [task.counts(batch) for batch in batches]
    factors = task.factors({name: sum(count[name] for count in counts) for name in task.counted})
    total = 0.0
    for batch in batches:
        losses = task.loss(model, batch)
        loss = sum(losses[name] * factors[name] for name in losses)
        with phases.spending("backward"):
            loss.backward()
        total += loss.item()
    with phases.spending("step"):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def case(folder: Path, recipe: Path, ranks: Ranks, adapter: str, stage: int, steps: int) -> dict[str, Any]:
    """Medians of one pair of runs, which take turns."""
    name = f"{adapter}-zero{stage}"
    ours_of = [ADAPTERS[adapter], f"engine.zero_stage={stage}"]
    with (
        opened(folder / name, recipe, ranks, *ours_of) as ours,
        opened(folder / f"{name}-plain", recipe, ranks, ADAPTERS[adapter], "engine.zero_stage=0") as plain,
    ):
        parameters = [p for p in plain.engine.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=plain.recipe.train.weight_decay, fused=True)
        of_ours, of_plain = Phases(), Phases()
        for method in ("backward", "step"):
            of_ours.watch(ours.engine, method, method)
        for owner, phases in ((ours, of_ours), (plain, of_plain)):
            phases.watch(owner.task, "loss", "forward")
        found: dict[str, list[tuple[float, float]]] = {"ours": [], "plain": []}
        for number in range(steps):
            found["ours"].append(seconds(partial(loop.step, ours, Silent())))
            of_ours.end_step()
            step = partial(plain_step, plain, plain.engine.module, optimizer, of_plain, number)
            found["plain"].append(seconds(step))
            of_plain.end_step()
    warm = {side: times[2:] for side, times in found.items()}
    pairs = list(zip(warm["ours"], warm["plain"], strict=True))
    return {
        "case": name,
        "cpu_ms": {side: round(1000 * statistics.median(c for c, _ in times), 1) for side, times in warm.items()},
        "wall_ms": {side: round(1000 * statistics.median(w for _, w in times), 1) for side, times in warm.items()},
        "cpu_ratio": round(statistics.median(a[0] / b[0] for a, b in pairs), 4),
        "wall_ratio": round(statistics.median(a[1] / b[1] for a, b in pairs), 4),
        "ours": of_ours.medians(),
        "plain": of_plain.medians(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=14, help="of which the first two do not count")
    parser.add_argument("--batch", type=int, default=1, help="rows of a step, a micro-batch each")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks = distributed.init(600)
    rows = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.format(data=DATA, cache=folder / "cache", batch=args.batch))
        for number in range(args.rounds):
            for adapter in ADAPTERS:
                for stage in (0, 2):
                    if args.only and f"{adapter}-zero{stage}" not in args.only:
                        continue
                    row = case(folder / str(number), recipe, ranks, adapter, stage, args.steps)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
            shutil.rmtree(folder / str(number))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
    os._exit(0)  # threads of gloo


if __name__ == "__main__":
    main()
