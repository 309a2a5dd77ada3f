"""Time of a forward and backward pass with a chunk of logits at a time, as a share of that with all of them.

    python -m benchmarks.loss_chunks small [--rounds 5] [--rows 1] [--dtype fp32]

The two ways take turns, on one thread of a CPU, since a machine that is shared is not as fast at all times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from distft.data.records import Document
from distft.tasks.causal_lm import TOKENS, Causal
from distft.tasks.shared.causal_rows import CausalBatch
from distft.tasks.shared.chunked_head import ChunkedHead, find

TOKENS_OF_A_ROW, CHUNK = 1024, 1024
SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "vocab_size": 9008},
    "large": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "vocab_size": 32_000},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=CHUNK)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.dtype]
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model: Any = Qwen2ForCausalLM(Qwen2Config(**SIZES[given.size], **heads)).to(dtype)
    whole, chunked = (Causal(model.forward, flatten=False) for _ in range(2))
    head = find(model, given.chunk, lambda vocabulary: chunked.few(model, vocabulary, torch.device("cpu")))
    assert isinstance(head, ChunkedHead), head
    chunked.head = head
    batch = whole.collate([[_document(model.config.vocab_size)] for _ in range(given.rows)], torch.device("cpu"))
    for task in (whole, chunked):
        seconds(model, task, batch)
    ratios = []
    for _ in range(given.rounds):
        one, other = seconds(model, whole, batch), seconds(model, chunked, batch)
        ratios.append(other / one)
        print(f"all logits {one:.3f} s, chunks {other:.3f} s, ratio {other / one:.3f}", flush=True)
    parameters = sum(one.numel() for one in model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters: median ratio {statistics.median(ratios):.3f}")


def _document(vocabulary: int) -> Document:
    tokens = np.random.default_rng(0).integers(0, vocabulary, TOKENS_OF_A_ROW).astype(np.int32)
    return Document({"tokens": tokens, "targets": np.arange(len(tokens)) > 0}, len(tokens), len(tokens) - 1)


def seconds(model: Any, task: Causal, batch: CausalBatch) -> float:
    """Of this process's own CPU time: others' waiting is not counted."""
    model.zero_grad()
    began = time.process_time()
    (task.loss(model, batch)[TOKENS] / len(batch.targets)).backward()  # type: ignore[no-untyped-call]
    return time.process_time() - began


if __name__ == "__main__":
    main()
