"""Preferences (DPO) on 300 pairs of answers: how often the better answer of a pair that was held out is preferred.

    python benchmarks/quality/preference.py FOLDER          an hour on two cores; FOLDER/report.json

A small Llama from scratch is first trained on 999 instructions (alpaca_en_demo) and exported. From there DPO on 80 % of
dpo_en_demo, with LoRA and in full. The split is by the prompt, so no prompt is on both sides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from commands import DISTFT, call, evaluate, log_of, save, shared, table, train, training_seconds

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


def instructions(steps: int, cache: Path) -> dict[str, Any]:
    return {
        "model": {"init": {"architecture": "llama", "vocab_size": 4096, "config": MODEL}},
        "data": {"train": str(shared("chat", "alpaca_en_demo.json")), "row_tokens": 512, "cache": str(cache)},
        "train": {"steps": steps, "lr": 2e-3, "global_batch": 8, "micro_batch": 8, "warmup": steps // 20},
        "engine": ENGINE,
        "checkpoint": {"every": 100, "keep": 1},
    }


def preferences(side: str, base: Path, folder: Path, epochs: float) -> dict[str, Any]:
    files = {"train": str(folder / "pairs-train.json"), "eval": str(folder / "pairs-heldout.json")}
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
    """A fifth of the pairs is held out, chosen by their prompt alone."""
    sides: dict[bool, list[Any]] = {False: [], True: []}
    for pair in json.loads(shared("chat", "dpo_en_demo.json").read_text()):
        digest = hashlib.sha256(json.dumps(pair["conversations"]).encode()).digest()
        sides[digest[0] % 5 == 0].append(pair)
    for held_out, name in ((False, "train"), (True, "heldout")):
        (folder / f"pairs-{name}.json").write_text(json.dumps(sides[held_out][:rows], indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="of the training on instructions")
    parser.add_argument("--epochs", type=float, default=3, help="of DPO")
    parser.add_argument("--rows", type=int, help="of the pairs, to try this script")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    folder: Path = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    split(folder, args.rows)
    start, base = folder / "instructions", folder / "base"
    train(instructions(args.steps, folder / "cache"), start, args.threads)
    call(log_of(start), DISTFT, "export", start, base, threads=args.threads)
    report: dict[str, Any] = {}
    for side in SIDES:
        run = folder / side.lower()
        train(preferences(side, base, folder, args.epochs), run, args.threads)
        report[side] = {
            "held out": evaluate(run, threads=args.threads),
            "trained on": evaluate(run, folder / "pairs-train.json", threads=args.threads),
            "training_seconds": training_seconds(run),
        }
        save(folder / "report.json", report)
    rows = [
        [side, pairs, *described(report[side][pairs]), f"{report[side]['training_seconds']:.0f}"]
        for side in report
        for pairs in ("held out", "trained on")
    ]
    print(table(["", "pairs", "reward accuracy", "95 % interval", "margin", "training seconds"], rows))


def described(scores: dict[str, float]) -> list[str]:
    low, high = scores["reward_accuracy_low"], scores["reward_accuracy_high"]
    return [f"{scores['reward_accuracy']:.3f}", f"{low:.3f} to {high:.3f}", f"{scores['reward_margin']:+.3f}"]


if __name__ == "__main__":
    main()
