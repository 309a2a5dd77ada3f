"""Encoder-decoders without padding beside padded ones: forward and backward of a small BART on Multi30k, de to en.

    python benchmarks/flat_pairs.py [--architecture bart] [--size 256] [--micro 32] [--batches 8] [--rounds 3]

A few minutes on one core. A model with random weights and a tokenizer of 8,000 pieces of this text. One thread. All
ways take turns over the same pairs, round by round: padded or in two rows, some at a time in random order ("random"),
or of 256 by length as `data.group_by_length: step` has them with `train.global_batch: 256` ("step"). A JSON line per
round with useful tokens, of sources and targets, per second of CPU time, then the medians, their ratios to the first,
and the share of places that are padding.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from distft.data.records import Document
from distft.model.document_attention import offer
from distft.recipe.tasks import Seq2SeqLM
from distft.tasks.seq2seq_lm import seq2seq_task
from distft.tasks.shared.decoder_targets import Targets
from distft.tasks.shared.encoder_decoder import TOKENS, EncoderDecoder
from distft.tasks.shared.padding import tokens_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "multi30k"
CPU, GLOBAL, VOCABULARY = torch.device("cpu"), 256, 8000
WAYS = (("sdpa", "random"), ("sdpa", "step"), ("varlen", "random"), ("varlen", "step"))
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def tokenizer_of(lines: Sequence[str]) -> Any:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    trained = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()), show_progress=False)
    backend.train_from_iterator(lines, trained)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def pairs(number: int) -> tuple[Any, list[Document]]:
    """Tokenizer and pairs, in a random order."""
    german, english = (lines_of(DATA / f"train.{side}.gz") for side in ("de", "en"))
    tokenizer, found = tokenizer_of([*german, *english]), []
    targets = Targets(tokenizer, 128)
    for place in np.random.default_rng(0).permutation(len(german))[:number]:
        columns = tokens_of(tokenizer, german[place])
        written, _ = targets.columns(english[place])
        found.append(Document({**columns, **written}, len(columns["tokens"]), len(written["labels"])))
    return tokenizer, found


def batches(rows: Sequence[Document], order: str, micro: int) -> list[list[Document]]:
    among = {"random": micro, "step": GLOBAL}[order]
    steps = [sorted(rows[at : at + among], key=lambda one: -one.size) for at in range(0, len(rows), among)]
    ordered = [one for step in steps for one in step]
    return [ordered[at : at + micro] for at in range(0, len(ordered), micro)]


def task_of(architecture: str, size: int, attention: str, tokenizer: Any) -> tuple[Any, EncoderDecoder]:
    torch.manual_seed(0)
    sizes = {"d_model": size, "encoder_ffn_dim": 4 * size, "decoder_ffn_dim": 4 * size, "vocab_size": VOCABULARY}
    sizes |= {"encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"d_kv": size // 4, "d_ff": 4 * size, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 256}
    sizes |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "decoder_start_token_id": 0}
    config = AutoConfig.for_model(architecture, **sizes)
    model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32, attn_implementation=attention).train()
    return model, seq2seq_task(Targets(tokenizer, 128), Seq2SeqLM(type="seq2seq-lm"), model)


def useful(rows: Sequence[Document]) -> int:
    return sum(one.size + len(one["labels"]) for one in rows)


def rate(model: Any, task: EncoderDecoder, micros: Sequence[Sequence[Document]]) -> float:
    """Useful tokens per second of CPU time."""
    began = time.process_time()
    for micro in micros:
        task.loss(model, task.collate([[one] for one in micro], CPU))[TOKENS].backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
    return sum(map(useful, micros)) / (time.process_time() - began)


def padding(micros: Sequence[Sequence[Document]]) -> float:
    sides = ([[one.size for one in micro] for micro in micros], [[len(one["labels"]) for one in m] for m in micros])
    places = sum(len(sizes) * max(sizes) for side in sides for sizes in side)
    return 1 - sum(map(useful, micros)) / places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="bart")
    for name, default in (("size", 256), ("micro", 32), ("batches", 8), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    offer()
    tokenizer, rows = pairs(options.batches * options.micro)
    sizes = options.architecture, options.size
    made = {attention: task_of(*sizes, attention, tokenizer) for attention in ("sdpa", "varlen")}
    for attention in made:
        rate(*made[attention], batches(rows[: options.micro], "random", options.micro))
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for attention, order in WAYS:
            micros = batches(rows, order, options.micro)
            found.setdefault(f"{attention} {order}", []).append(rate(*made[attention], micros))
        print(json.dumps({way: round(rates[-1]) for way, rates in found.items()}), flush=True)
    medians = {way: statistics.median(rates) for way, rates in found.items()}
    print(json.dumps({way: round(median / medians["sdpa random"], 2) for way, median in medians.items()}))
    print(json.dumps({order: round(padding(batches(rows, order, options.micro)), 3) for order in ("random", "step")}))
    print(f"{sum(parameter.numel() for parameter in made['sdpa'][0].parameters()):,} parameters")


if __name__ == "__main__":
    main()
