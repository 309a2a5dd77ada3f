"""One run of three tasks beside three runs of one: sentiment (SST-2), entities (CoNLL-2003), opinion (PhraseBank).

    python benchmarks/quality/multitask.py FOLDER          an hour on two cores; FOLDER/report.json

Each task has the same number of rows on both sides, so many epochs of its data; in the one run they share the encoder,
and the micro-batches of a step are of one task or another. Scores are of the data that against_trainer.py tests on.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from commands import MINILM, evaluate, minilm, save, table, train, training_seconds
from tasks import ROW_TOKENS, TASKS

PARTS = {"sentiment": "sst2", "entities": "conll2003", "opinion": "phrasebank"}
MICRO_BATCH, A_STEP = 16, 2  # rows; micro-batches


def recipe(task: dict[str, Any], data: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    return {
        "task": task,
        "model": {"path": str(minilm(args.minilm))},
        "data": {**data, "row_tokens": ROW_TOKENS, "cache": str(args.folder / "cache")},
        "train": {
            "epochs": args.epochs,
            "lr": args.lr,
            "global_batch": MICRO_BATCH * A_STEP,
            "micro_batch": MICRO_BATCH,
            "schedule": "linear",
            "warmup": args.warmup,
        },
        "engine": {"zero_stage": 0, "dtype": "fp32"},
        "checkpoint": {"every": 500, "keep": 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--minilm", type=Path, default=MINILM)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=int, help="of each file, to try this script")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    args.folder.mkdir(parents=True, exist_ok=True)
    tests: dict[str, Path] = {}
    parts: dict[str, Any] = {}
    for part, name in PARTS.items():
        training, tests[part], count = TASKS[name].write(args.folder, name, args.rows)
        # a share of the micro-batches as large as that of the rows: each task gets the epochs of the whole
        parts[part] = {"task": TASKS[name].settings, "train": str(training), **TASKS[name].data, "weight": float(count)}
    together = args.folder / "together"
    train(recipe({"type": "multi-task", "tasks": parts}, {}, args), together, args.threads)
    report: dict[str, Any] = {"training_seconds": {"together": training_seconds(together)}}
    for part, name in PARTS.items():
        alone = args.folder / part
        data = {key: value for key, value in parts[part].items() if key not in ("task", "weight")}
        train(recipe(TASKS[name].settings, data, args), alone, args.threads)
        report["training_seconds"][part] = training_seconds(alone)
        report[part] = {
            "alone": evaluate(alone, tests[part], threads=args.threads),
            "together": evaluate(together, tests[part], part, threads=args.threads),
        }
        save(args.folder / "report.json", report)
    rows = []
    for part, name in PARTS.items():
        for score in TASKS[name].scores:
            alone, shared = (report[part][side][score] for side in ("alone", "together"))
            rows.append([part, score, f"{alone:.4f}", f"{shared:.4f}", f"{shared - alone:+.4f}"])
    print(table(["task", "score", "alone", "together", "difference"], rows))


if __name__ == "__main__":
    main()
