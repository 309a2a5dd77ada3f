"""One run of three tasks beside three runs of one: sentiment (SST-2), entities (CoNLL-2003), opinion (PhraseBank).

    python benchmarks/quality/multitask.py FOLDER          an hour on two cores; FOLDER/report.json

Each task has the same number of rows on both sides, so many epochs of its data; in the one run they share the encoder,
and the micro-batches of a step are of one task or another. Scores are of the data that against_trainer.py tests on.
The spread of several seeds says what a difference is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from commands import MINILM, evaluate, minilm, save, table, train, training_seconds
from tasks import ROW_TOKENS, TASKS

PARTS = {"sentiment": "sst2", "entities": "conll2003", "opinion": "phrasebank"}
MICRO_BATCH, A_STEP = 16, 2  # rows; micro-batches


def recipe(task: dict[str, Any], data: dict[str, Any], seed: int, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "task": task,
        "model": {"path": str(minilm(args.minilm))},
        "data": {**data, "row_tokens": ROW_TOKENS, "seed": seed, "cache": str(args.folder / "cache")},
        "train": {
            "epochs": args.epochs,
            "lr": args.lr,
            "global_batch": MICRO_BATCH * A_STEP,
            "micro_batch": MICRO_BATCH,
            "schedule": "linear",
            "warmup": args.warmup,
            "seed": seed,
        },
        "engine": {"zero_stage": 0, "dtype": "fp32"},
        "checkpoint": {"every": 500, "keep": 1},
    }


def scores_of(seed: int, parts: dict[str, Any], tests: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """{"together" or "alone": {part: scores}} of one seed; also the seconds of the optimizer steps."""
    together = args.folder / f"together-{seed}"
    train(recipe({"type": "multi-task", "tasks": parts}, {}, seed, args), together, args.threads)
    found: dict[str, Any] = {"alone": {}, "together": {}, "training_seconds": {"together": training_seconds(together)}}
    for part, name in PARTS.items():
        alone = args.folder / f"{part}-{seed}"
        data = {key: value for key, value in parts[part].items() if key not in ("task", "weight")}
        train(recipe(TASKS[name].settings, data, seed, args), alone, args.threads)
        found["training_seconds"][part] = training_seconds(alone)
        found["alone"][part] = evaluate(alone, tests[part], threads=args.threads)
        found["together"][part] = evaluate(together, tests[part], part, threads=args.threads)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--warmup", type=int, default=20)
    parser.add_argument("--minilm", type=Path, default=MINILM)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=int, help="of each file at most")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    args.folder.mkdir(parents=True, exist_ok=True)
    tests: dict[str, Path] = {}
    parts: dict[str, Any] = {}
    for part, name in PARTS.items():
        training, tests[part], count = TASKS[name].write(args.folder, name, args.rows)
        # a share of the micro-batches as large as that of the rows: each task gets the epochs of the whole
        parts[part] = {"task": TASKS[name].settings, "train": str(training), **TASKS[name].data, "weight": float(count)}
    kept = args.folder / "report.json"
    settings = {name: getattr(args, name) for name in ("epochs", "lr", "warmup", "rows")}
    runs: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for seed in args.seeds:
        if not any({"seed": seed, **settings}.items() <= run.items() for run in runs):
            runs.append({"seed": seed, **settings, **scores_of(seed, parts, tests, args)})
            save(kept, runs)
    print(summary([run for run in runs if settings.items() <= run.items() and run["seed"] in args.seeds]))


def summary(runs: list[dict[str, Any]]) -> str:
    rows = []
    for part, name in PARTS.items():
        for score in TASKS[name].scores:
            alone, together = ([run[side][part][score] for run in runs] for side in ("alone", "together"))
            difference = statistics.mean(together) - statistics.mean(alone)
            rows.append([part, score, spread(alone), spread(together), f"{difference:+.4f}"])
    return table(["task", "score", "alone, mean (sd)", "together, mean (sd)", "difference"], rows)


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ({statistics.stdev(values) if len(values) > 1 else 0.0:.4f})"


if __name__ == "__main__":
    main()
