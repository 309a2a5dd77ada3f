"""AdaLoRA against LoRA on real data, at an equal number of ranks in the end: held-out loss, mean and spread over seeds.

    python benchmarks/adalora_or_lora.py FOLDER          half an hour on two cores

The base is a small Llama trained on the spot, on Shakespeare; the task is GSM8K. Each side gets the learning rate that
is best for it on a seed that is not counted, then five others. A seed decides the adapter's weights, the order of rows
and dropout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
BASE = """\
model:
  init: {{architecture: llama, vocab_size: 2048, config: {{hidden_size: 128, intermediate_size: 384,
         num_hidden_layers: 4, num_attention_heads: 4, num_key_value_heads: 4, max_position_embeddings: 256,
         tie_word_embeddings: true}}}}
data: {{train: {folder}/shakespeare.jsonl, row_tokens: 256, cache: {folder}/cache}}
train: {{steps: 600, lr: 2.0e-3, global_batch: 8, micro_batch: 8, warmup: 20}}
engine: {{zero_stage: 0, dtype: fp32}}
"""
TASK = """\
model: {{path: {folder}/base/final}}
data: {{train: {gsm8k}/train.jsonl, eval: {folder}/heldout.jsonl, fields: {{prompt: question, completion: answer}},
        row_tokens: 128, cache: {folder}/cache}}
train: {{steps: 250, lr: 1.0e-3, global_batch: 8, micro_batch: 8, warmup: 10}}
engine: {{zero_stage: 0, dtype: fp32}}
checkpoint: {{every: 1000}}
"""
SIDES = {
    "LoRA r 4": "adapter={type: lora, r: 4, alpha: 8, dropout: 0.05}",
    "AdaLoRA 6 to 4": "adapter={type: adalora, init_r: 6, target_r: 4, alpha: 12, dropout: 0.05}",
}
RATES = (3e-3, 6e-3, 1e-2, 1.7e-2, 3e-2, 6e-2)
TUNING_SEED, SEEDS = 100, (1, 2, 3, 4, 5)
HELD_OUT = 400  # records of GSM8K's test set


def train(folder: Path, run: str, recipe: Path, *overrides: str) -> Path:
    out = folder / run
    if not (out / "final").exists():
        command = [str(Path(sys.executable).with_name("distft")), "train", str(recipe), *overrides, f"--run-dir={out}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run([*command, "--nproc=1"], check=True, env=environment, stdout=subprocess.DEVNULL)
    return out


def held_out(run: Path) -> float:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([record["eval_loss"] for record in records if "eval_loss" in record][-1])


def one(folder: Path, side: str, rate: float, seed: int) -> float:
    seeds = [f"{key}.seed={seed}" for key in ("adapter", "data", "train")]
    name = f"{side.replace(' ', '-')}-{rate:g}-{seed}"
    return held_out(train(folder, name, folder / "task.yaml", SIDES[side], *seeds, f"train.lr={rate}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lines = (SHARED / "shakespeare").glob("*.txt")
    text = next(iter(sorted(lines))).read_text()
    pieces = [text[at : at + 2000] for at in range(0, len(text), 2000)]
    (folder / "shakespeare.jsonl").write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces))
    held = (SHARED / "gsm8k" / "test.jsonl").read_text().splitlines(keepends=True)
    (folder / "heldout.jsonl").write_text("".join(held[:HELD_OUT]))
    (folder / "base.yaml").write_text(BASE.format(folder=folder))
    (folder / "task.yaml").write_text(TASK.format(folder=folder, gsm8k=SHARED / "gsm8k"))
    train(folder, "base", folder / "base.yaml")
    report = {}
    with ThreadPoolExecutor(args.workers) as pool:
        tried = {side: {rate: pool.submit(one, folder, side, rate, TUNING_SEED) for rate in RATES} for side in SIDES}
        best = {side: min(rates, key=lambda rate: rates[rate].result()) for side, rates in tried.items()}
        runs = {side: [pool.submit(one, folder, side, best[side], seed) for seed in SEEDS] for side in SIDES}
        for side, futures in runs.items():
            losses = [future.result() for future in futures]
            report[side] = {
                "lr": best[side],
                "tuning": {f"{rate:g}": future.result() for rate, future in tried[side].items()},
                "held_out": losses,
                "mean": statistics.mean(losses),
                "standard_deviation": statistics.stdev(losses),
            }
            print(side, json.dumps(report[side]), flush=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
