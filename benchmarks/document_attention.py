"""Attention by document beside sdpa with a mask: forward and backward of a small Qwen2 on packed rows of GSM8K.

    python benchmarks/document_attention.py [--rows 1024 ...] [--rounds 5]      a quarter of an hour on one core

One thread. All ways take turns over the same documents, round by round: "sdpa" and "varlen" in packed rows, "grouped"
as documents of similar lengths below each other, padded to the longest, which is how others avoid a mask. A JSON line
per round with useful tokens per second of CPU time, then the medians and their ratios to sdpa.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, Qwen2Config

from distft.data.packing import bucket, pack
from distft.data.records import Document
from distft.model.document_attention import offer
from distft.tasks.causal_lm import TOKENS, Causal

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k" / "train.jsonl"
SHAPE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "vocab_size": 9008, "max_position_embeddings": 4096}
CPU = torch.device("cpu")
Batch = list[list[Document]]


def documents() -> list[Document]:
    """Questions with their answers, which are learned."""
    records = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    texts = [text for record in records for text in (record["question"], record["answer"])]
    trainer = trainers.BpeTrainer(vocab_size=SHAPE["vocab_size"], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    found = []
    for record in records:
        question, answer = (tokenizer.encode(record[key]).ids for key in ("question", "answer"))
        size = len(question) + len(answer)
        targets = np.arange(size) >= len(question)
        found.append(Document({"tokens": np.array(question + answer, np.int32), "targets": targets}, size, len(answer)))
    return found


def micro_batches(known: Sequence[Document], row_tokens: int, count: int) -> Mapping[str, list[Batch]]:
    """Of one packed row each, spread over all; and the documents of these rows, grouped by their lengths."""
    sizes = np.array([document.size for document in known], np.int32)
    rows = pack(sizes, row_tokens, 0)
    chosen = [rows.row(int(place)) for place in np.random.default_rng(0).choice(len(rows), count, replace=False)]
    packed = [[[known[i] for i in row]] for row in chosen]
    among = [known[i] for row in chosen for i in row]
    groups = bucket(np.array([document.size for document in among], np.int32), row_tokens, 0)
    grouped = [[[among[i]] for i in groups.row(place)] for place in range(len(groups))]
    return {"sdpa": packed, "varlen": packed, "grouped": grouped}


class Way:
    def __init__(self, name: str) -> None:
        attention = "varlen" if name == "varlen" else "sdpa"
        torch.manual_seed(0)
        config = Qwen2Config(**SHAPE, tie_word_embeddings=True)
        self.model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
        self.task = Causal(self.model.forward, attention == "varlen")

    def speed(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """(useful tokens per second of the CPU, the sum of losses)."""
        begin, tokens, total = time.process_time(), 0, 0.0  # others on the machine count less in it
        for rows in batches:
            batch = self.task.collate(rows, CPU)
            loss = self.task.loss(self.model, batch)[TOKENS]
            loss.backward()
            self.model.zero_grad()
            tokens += batch.useful_tokens
            total += loss.item()
        return tokens / (time.process_time() - begin), total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 512], help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8192, help="of the rows of a round, about")
    options = parser.parse_args()
    torch.set_num_threads(1)
    offer()
    known = documents()
    ways = {name: Way(name) for name in ("sdpa", "varlen", "grouped")}
    parameters = sum(parameter.numel() for parameter in ways["sdpa"].model.parameters())
    print(json.dumps({"parameters": parameters, "documents": len(known)}), flush=True)
    for row_tokens in options.rows:
        batches = micro_batches(known, row_tokens, max(1, options.tokens // row_tokens))
        for name, way in ways.items():
            way.speed(batches[name][:1])  # the first is slow
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(1, options.rounds + 1):
            found = {name: way.speed(batches[name]) for name, way in ways.items()}
            for name, (speed, total) in found.items():
                speeds[name].append(speed)
                assert abs(total / found["sdpa"][1] - 1) < 1e-6, "the losses differ"
            print(json.dumps({"row_tokens": row_tokens, "round": number, **{n: s for n, (s, _) in found.items()}}))
        medians = {name: statistics.median(each) for name, each in speeds.items()}
        ratios = {name: [a / b for a, b in zip(each, speeds["sdpa"], strict=True)] for name, each in speeds.items()}
        ratio = {name: statistics.median(each) for name, each in ratios.items()}
        print(json.dumps({"row_tokens": row_tokens, "medians": medians, "ratios to sdpa": ratio}), flush=True)


if __name__ == "__main__":
    main()
