"""Preferences (DPO) on 300 pairs of answers: how often the better answer of a pair that was held out is preferred.

    python benchmarks/quality/preference.py FOLDER          hours on two cores; FOLDER/report.json

A small Llama from scratch is first trained on 999 instructions (alpaca_en_demo) and exported. From there DPO on four
fifths of dpo_en_demo, with LoRA and in full, five times: each pair is held out once, so that all 300 count. The folds
are made by the prompt, so no prompt is on both sides. What is in the report already is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

from commands import DISTFT, call, evaluate, log_of, save, shared, table, train, training_seconds

from distft.tasks.dpo import interval

MODEL = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 8192,  # as long as the longest pair
    "tie_word_embeddings": True,
}
SIDES: dict[str, dict[str, Any]] = {
    "LoRA": {"adapter": {"type": "lora", "r": 16, "alpha": 32, "targets": "all-linear"}, "lr": 1e-3},
    "full": {"adapter": {"type": "none"}, "lr": 1e-4},
}
ENGINE = {"zero_stage": 0, "dtype": "fp32"}
FOLDS = 5


def instructions(steps: int, cache: Path) -> dict[str, Any]:
    return {
        "model": {"init": {"architecture": "llama", "vocab_size": 4096, "config": MODEL}},
        "data": {"train": str(shared("chat", "alpaca_en_demo.json")), "row_tokens": 512, "cache": str(cache)},
        "train": {"steps": steps, "lr": 2e-3, "global_batch": 8, "micro_batch": 8, "warmup": steps // 20},
        "engine": ENGINE,
        "checkpoint": {"every": 100, "keep": 1},
    }


def preferences(side: str, base: Path, folder: Path, fold: int, epochs: float) -> dict[str, Any]:
    files = {"train": str(folder / f"train-{fold}.json"), "eval": str(folder / f"heldout-{fold}.json")}
    return {
        "task": {"type": "dpo", "beta": 0.1},
        "model": {"path": str(base)},
        "data": {**files, "row_tokens": MODEL["max_position_embeddings"], "cache": str(folder / "cache")},
        "adapter": SIDES[side]["adapter"],
        "train": {"epochs": epochs, "lr": SIDES[side]["lr"], "global_batch": 16, "micro_batch": 2},
        "engine": ENGINE,
        "checkpoint": {"every": 10, "keep": 1},
    }


def split(folder: Path, rows: int | None) -> None:
    """Files of each fold: a fifth of the pairs is held out, chosen by their prompt alone."""
    pairs = json.loads(shared("chat", "dpo_en_demo.json").read_text())
    fold_of = [hashlib.sha256(json.dumps(pair["conversations"]).encode()).digest()[0] % FOLDS for pair in pairs]
    for fold in range(FOLDS):
        for held_out, name in ((False, "train"), (True, "heldout")):
            side = [pair for pair, its in zip(pairs, fold_of, strict=True) if (its == fold) is held_out]
            (folder / f"{name}-{fold}.json").write_text(json.dumps(side[:rows], indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="of the training on instructions")
    parser.add_argument("--epochs", type=float, default=1, help="of DPO")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--rows", type=int, help="of the pairs, to try this script")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    folder: Path = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    split(folder, args.rows)
    start, base = folder / "instructions", folder / "base"
    train(instructions(args.steps, folder / "cache"), start, args.threads)
    call(log_of(start), DISTFT, "export", start, base, threads=args.threads)
    kept = folder / "report.json"
    runs: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for fold, side in itertools.product(args.folds, args.sides):
        settings = {"side": side, "fold": fold, "epochs": args.epochs, "rows": args.rows}
        if not any(settings.items() <= run.items() for run in runs):
            run = folder / f"{side.lower()}-{args.epochs:g}-{fold}"
            train(preferences(side, base, folder, fold, args.epochs), run, args.threads)
            pairs = len(json.loads((folder / f"heldout-{fold}.json").read_text()))
            runs.append({**settings, "pairs": pairs, "seconds": training_seconds(run)})
            runs[-1]["scores"] = evaluate(run, threads=args.threads)
            save(kept, runs)
    wanted = {"epochs": args.epochs, "rows": args.rows}
    runs = [run for run in runs if wanted.items() <= run.items()]
    rows = [[side, *pooled([run for run in runs if run["side"] == side])] for side in args.sides]
    print(table(["", "pairs held out", "reward accuracy", "95 % interval", "margin", "training seconds"], rows))


def pooled(runs: list[dict[str, Any]]) -> list[str]:
    """All folds as one."""
    pairs = sum(run["pairs"] for run in runs)
    right = sum(round(run["scores"]["reward_accuracy"] * run["pairs"]) for run in runs)
    margin = sum(run["scores"]["reward_margin"] * run["pairs"] for run in runs) / pairs
    low, high = interval(right, pairs)
    seconds = sum(run["seconds"] for run in runs)
    return [f"{pairs}", f"{right / pairs:.3f}", f"{low:.3f} to {high:.3f}", f"{margin:+.3f}", f"{seconds:.0f}"]


if __name__ == "__main__":
    main()
