"""Spoken digits (FSDD, 8 kHz) by a small wav2vec2 with CTC from scratch: word error rates on two splits.

    python benchmarks/quality/speech.py FOLDER          a quarter of an hour on two cores; FOLDER/report.json

Takes: the data set's own split, recordings 0 to 4 of each digit and speaker are held out. Speaker: one speaker is held
out. The text is the digit's English word, written letter by letter. Both are trained at once, with a thread each: on so
small a model a second thread has little to do.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from commands import evaluate, save, shared, table, train, training_seconds

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT_TAKES = 5
MODEL = {
    "conv_dim": [48, 64, 96, 128],
    "conv_kernel": [80, 8, 4, 2],
    "conv_stride": [10, 4, 4, 2],  # 20 ms in all, as usual, but fewer numbers on the way
    "feat_extract_norm": "layer",  # from scratch it learns sooner than with a norm over time in the first layer only
    "conv_bias": True,
    "do_stable_layer_norm": True,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_conv_pos_embeddings": 15,
    "num_conv_pos_embedding_groups": 4,
    "apply_spec_augment": False,  # its masks are of ten frames, and a digit has twenty
}


def recipe(data: Path, steps: int, lr: float, cache: Path) -> dict[str, Any]:
    return {
        "task": {"type": "ctc"},
        "model": {"init": {"architecture": "wav2vec2", "config": MODEL}},
        "data": {"train": str(data), "row_tokens": 3000, "cache": str(cache)},
        "train": {
            "steps": steps,
            "lr": lr,
            "global_batch": 16,
            "micro_batch": 16,
            "schedule": "linear",
            "warmup": steps // 10,
            "weight_decay": 0.01,
        },
        "engine": {"zero_stage": 0, "dtype": "fp32"},
        "checkpoint": {"every": 200, "keep": 1},
    }


def write_transcripts(archive: Path, folder: Path, speaker: str) -> None:
    """NAME-train.jsonl and NAME-test.jsonl for each split."""
    with tarfile.open(archive) as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".wav"))
    held_out: dict[str, Callable[[str, int], bool]] = {
        "takes": lambda who, take: take < HELD_OUT_TAKES,
        "speaker": lambda who, take: who == speaker,
    }
    for split, is_held_out in held_out.items():
        lines: dict[bool, list[str]] = {False: [], True: []}
        for name in names:
            digit, who, take = Path(name).stem.split("_")
            record = {"audio": f"{archive}#{name}", "text": WORDS[int(digit)]}
            lines[is_held_out(who, int(take))].append(json.dumps(record) + "\n")
        (folder / f"{split}-train.jsonl").write_text("".join(lines[False]))
        (folder / f"{split}-test.jsonl").write_text("".join(lines[True]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--splits", nargs="*", choices=["takes", "speaker"], default=["takes", "speaker"])
    parser.add_argument("--speaker", default="theo", help="who is held out of the split 'speaker'")
    parser.add_argument("--threads", type=int, default=1, help="of each of the two")
    args = parser.parse_args()
    archive = shared("fsdd", "recordings.tar.gz")
    folder: Path = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_transcripts(archive, folder, args.speaker)

    def trained(split: str) -> Path:
        data, run = folder / f"{split}-train.jsonl", folder / split
        train(recipe(data, args.steps, args.lr, folder / "cache"), run, args.threads)
        return run

    report: dict[str, dict[str, float]] = {}
    with ThreadPoolExecutor(len(args.splits)) as pool:
        for split, run in zip(args.splits, pool.map(trained, args.splits), strict=True):
            scores = evaluate(run, folder / f"{split}-test.jsonl", threads=args.threads)
            report[split] = {**scores, "steps": args.steps, "training_seconds": training_seconds(run)}
            save(folder / "report.json", report)
    names = ("wer", "cer", "training_seconds")
    rows = [[split, *(f"{found[name]:.4g}" for name in names)] for split, found in report.items()]
    print(table(["split", *names], rows))


if __name__ == "__main__":
    main()
