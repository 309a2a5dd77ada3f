"""Scores beside transformers' Trainer: the same weights, data and hyper-parameters, in turn, several seeds.

    python benchmarks/quality/against_trainer.py FOLDER --task sst2        an hour on two cores; FOLDER/sst2.json

The peer is trainer.py. Both sides: AdamW, a linear schedule after a tenth of warm-up, batches of 32 rows in any order,
128 tokens, fp32, gradients clipped at 1, the same number of steps and of threads. Both without weight decay: Trainer
would spare biases and norms, distft decays all parameters. What is left between them: the order of the rows, the
numbers of dropout and of the fresh head; Trainer's warm-up is a step behind, its last batch of an epoch is not full,
and it trains on the first 128 tokens of a longer sentence, where distft trains on all of it in pieces.
The scores of conll2003 are of entities on the test data; there distft runs with a CRF too, its head at 1e-3.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import MINILM, call, evaluate, log_of, minilm, save, table, train, training_seconds
from tasks import BATCH, ROW_TOKENS, TASKS, WARMUP, Task

PEER, OURS, CRF = "Trainer", "distft", "distft CRF"


@dataclass(frozen=True)
class Comparison:
    """What all runs of one task have in common. `rows`: of the training data."""

    name: str
    task: Task
    folder: Path
    model: Path
    train: Path
    test: Path
    rows: int
    epochs: int
    lr: float
    threads: int

    def run(self, side: str, seed: int) -> dict[str, Any]:
        """Scores and seconds of one run."""
        run = self.folder / f"{self.name}-{side.replace(' ', '-')}-{seed}"
        shutil.rmtree(run, ignore_errors=True)  # of a try that was broken off: its seconds would be missing
        log_of(run).unlink(missing_ok=True)
        found = self._peer(run, seed) if side == PEER else self._ours(run, seed, side == CRF)
        shutil.rmtree(run, ignore_errors=True)
        return {"side": side, "seed": seed, **found}

    def _peer(self, run: Path, seed: int) -> dict[str, Any]:
        out = run.with_suffix(".json")
        options = (f"--seed={seed}", f"--epochs={self.epochs}", f"--lr={self.lr}")
        script = Path(__file__).with_name("trainer.py")
        files = (self.model, self.train, self.test, out)
        seconds = call(log_of(run), sys.executable, script, self.name, *files, *options, threads=self.threads)
        return {**json.loads(out.read_text()), "seconds": seconds}

    def _ours(self, run: Path, seed: int, crf: bool) -> dict[str, Any]:
        recipe, began = self._recipe(seed, crf), time.monotonic()
        train(recipe, run, self.threads)
        scores = evaluate(run, self.test, threads=self.threads)
        seconds, steps = time.monotonic() - began, recipe["train"]["steps"]
        return {"scores": scores, "training_seconds": training_seconds(run), "steps": steps, "seconds": seconds}

    def _recipe(self, seed: int, crf: bool) -> dict[str, Any]:
        steps = self.epochs * math.ceil(self.rows / BATCH)
        return {
            "task": {**self.task.settings, **({"crf": True} if crf else {})},
            "model": {"path": str(self.model)},
            "data": {
                "train": str(self.train),
                **self.task.data,
                "row_tokens": ROW_TOKENS,
                "packing": False,
                "group_by_length": False,
                "seed": seed,
                "cache": str(self.folder / "cache"),
            },
            "train": {
                "steps": steps,
                "lr": self.lr,
                "head_lr": 1e-3 if crf else None,
                "global_batch": BATCH,
                "micro_batch": BATCH,
                "schedule": "linear",
                "warmup": math.ceil(WARMUP * steps),
                "weight_decay": 0.0,
                "clip": 1.0,
                "seed": seed,
            },
            "engine": {"zero_stage": 0, "dtype": "fp32"},
            "checkpoint": {"every": steps, "keep": 1},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=list(TASKS), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--minilm", type=Path, default=MINILM)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=int, help="of the training and the test data, to try this script")
    args = parser.parse_args()
    folder: Path = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    task, model = TASKS[args.task], minilm(args.minilm)
    files = task.write(folder, args.task, args.rows)
    comparison = Comparison(args.task, task, folder, model, *files, args.epochs, args.lr, args.threads)
    kept = folder / f"{args.task}.json"
    runs: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    settings = {"rows": files[-1], "epochs": args.epochs, "lr": args.lr, "threads": args.threads}
    sides = (PEER, OURS, CRF) if task.words else (PEER, OURS)
    for seed in args.seeds:
        for side in sides:
            if not any({"side": side, "seed": seed, **settings}.items() <= run.items() for run in runs):
                runs.append({**comparison.run(side, seed), **settings})
                save(kept, runs)
                print(f"{side}, seed {seed}: {json.dumps(runs[-1]['scores'])}", flush=True)
    print(summary(task, [run for run in runs if settings.items() <= run.items() and run["seed"] in args.seeds]))


def summary(task: Task, runs: list[dict[str, Any]]) -> str:
    """A row for each side and score: mean, deviation, and what lies between it and Trainer."""
    sides = list(dict.fromkeys(run["side"] for run in runs))
    rows = []
    for score in task.scores:
        found = {side: [run["scores"][score] for run in runs if run["side"] == side] for side in sides}
        rows += [[score, side, *compared(values, found[PEER])] for side, values in found.items()]
    for name in ("seconds", "training_seconds"):
        for side in sides:
            values = [run[name] for run in runs if run["side"] == side]
            rows.append([name, side, f"{statistics.mean(values):.0f}", f"{deviation(values):.0f}", "", ""])
    return table(["score", "side", "mean", "deviation", "to Trainer", "below it by more than the spread"], rows)


def compared(values: list[float], theirs: list[float]) -> list[str]:
    mean, spread = statistics.mean(values), max(deviation(values), deviation(theirs))
    shown = [f"{mean:.4f}", f"{deviation(values):.4f}"]
    if values is theirs:
        return [*shown, "", ""]
    difference = mean - statistics.mean(theirs)
    return [*shown, f"{difference:+.4f}", "yes" if difference < -spread else "no"]


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
