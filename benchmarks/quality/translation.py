"""English to German (Multi30k) by a small Marian from scratch, on a fixed budget: BLEU on the test data of 2016.

    python benchmarks/quality/translation.py FOLDER          an hour on one core beside other work; FOLDER/report.json

Beside it what copying the source is worth, and what the model writes before its first step.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from pathlib import Path
from typing import Any

import sacrebleu
from commands import DISTFT, call, evaluate, log_of, save, shared, table, train, training_seconds

MODEL = {
    "d_model": 256,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "scale_embedding": True,
    "max_position_embeddings": 128,
}
VOCABULARY = 4000
SHOWN = 3
SIDES = {"source": "en", "target": "de"}


def recipe(steps: int, lr: float, cache: Path) -> dict[str, Any]:
    data = {side: str(shared("multi30k", f"train.{language}.gz")) for side, language in SIDES.items()}
    return {
        "task": {"type": "seq2seq-lm", "beams": 4, "longest_target": 64},
        "model": {"init": {"architecture": "marian", "vocab_size": VOCABULARY, "config": MODEL}},
        "data": {"train": data, "row_tokens": 64, "cache": str(cache)},
        "train": {
            "steps": steps,
            "lr": lr,
            "global_batch": 64,
            "micro_batch": 64,
            "schedule": "cosine",
            "warmup": 150,
            "weight_decay": 0.01,
        },
        "engine": {"zero_stage": 0, "dtype": "fp32"},
        "checkpoint": {"every": 500, "keep": 1},
    }


def read(language: str) -> list[str]:
    text = gzip.decompress(shared("multi30k", f"test_2016_flickr.{language}.gz").read_bytes()).decode()
    return text.removesuffix("\n").split("\n")


def bleu(written: list[str], references: list[str]) -> dict[str, float]:
    return {
        "bleu": sacrebleu.corpus_bleu(written, [references]).score,
        "chrf": sacrebleu.corpus_chrf(written, [references]).score,
    }


def predict(run: Path, source: Path, out: Path, *options: str, threads: int) -> list[str]:
    call(log_of(run), DISTFT, "predict", run, f"--input={source}", f"--output={out}", *options, threads=threads)
    return [json.loads(line)["text"] for line in out.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--rows", type=int, help="of the test data, to try this script")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    folder, threads = args.folder.absolute(), args.threads
    folder.mkdir(parents=True, exist_ok=True)
    sources, references = (read(language)[: args.rows] for language in SIDES.values())
    records = [{"source": source, "target": target} for source, target in zip(sources, references, strict=True)]
    test = folder / "test.jsonl"
    test.write_text("".join(json.dumps(record) + "\n" for record in records))
    run = folder / "marian"
    train(recipe(args.steps, args.lr, folder / "cache"), run, threads)
    before = predict(run, test, folder / "before.jsonl", "--base-only", threads=threads)
    after = predict(run, test, folder / "after.jsonl", threads=threads)
    report = {
        "copy": bleu(sources, references),
        "step 0": bleu(before, references),
        f"step {args.steps}": bleu(after, references),
        "distft eval": evaluate(run, test, threads=threads),  # the same again, by the product's own score
    }
    save(folder / "report.json", {**report, "training_seconds": training_seconds(run)})
    print(table(["", "BLEU", "chrF"], [[name, f"{s['bleu']:.2f}", f"{s['chrf']:.2f}"] for name, s in report.items()]))
    for source, written, right in zip(sources[:SHOWN], after, references, strict=False):
        print(f"\n{source}\n  {written}\n  ({right})")


if __name__ == "__main__":
    main()
