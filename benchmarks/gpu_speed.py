"""Llama-3.1-8B's shape with LoRA under the product's engine and task, without data and checkpoints; see gpu.py.

    python benchmarks/gpu_speed.py [--small]                a minute or two on one GPU; --small for a CPU

A JSON line per measurement: tokens per second and memory by rows and their lengths, waits of the host in a step, the
longest kernels, and the copy of a save.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
os.environ.setdefault("MASTER_PORT", "29617")

import numpy as np
import torch

from distft.checkpoint.host_memory import HostMemory, after_what_is_queued
from distft.data.records import Document
from distft.engine.deepspeed import Engine
from distft.model import adapters
from distft.process import distributed
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.recipe.tasks import CausalLM
from distft.tasks.causal_lm import Causal, spec
from distft.tasks.protocol import collated
from distft.tasks.shared.causal_rows import CausalBatch

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 2000}
LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LARGE |= {"num_key_value_heads": 8, "vocab_size": 128256}
ROWS = [(1, 4096), (4, 4096), (1, 8192), (1, 16384), (1, 32768)]  # rows x tokens
SMALL_ROWS = [(1, 128), (2, 128)]
DOCUMENT, WARM, MEASURED = 512, 2, 3  # tokens, steps, steps


class Speed:
    def __init__(self, ranks: Ranks, shape: dict[str, int], attention: str) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig

        self.ranks, self.vocabulary, self.attention = ranks, shape["vocab_size"], attention
        config = LlamaConfig(**shape, max_position_embeddings=131072, tie_word_embeddings=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
        model.to_empty(device=ranks.device)
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(ranks.device)  # its buffers are computed
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        self.task = Causal(model.forward, attention == "flash_attention_2")
        sections = {"model": {"path": "x"}, "train": {"steps": 9}, "adapter": {"type": "lora"}}
        recipe = Recipe.model_validate(sections)
        model = adapters.attach(model, recipe.adapter, spec(CausalLM(), {}).model, None, 9)
        model.train()
        self.engine = Engine(model, recipe, ranks)
        self.random = np.random.default_rng(0)

    def batch(self, rows: int, tokens: int) -> CausalBatch:
        size = min(DOCUMENT, tokens)

        def one() -> Document:
            drawn = self.random.integers(0, self.vocabulary, size).astype(np.int32)
            return Document({"tokens": drawn, "targets": np.arange(size) > 0}, size, size - 1)

        return collated(self.task, [[one() for _ in range(tokens // size)] for _ in range(rows)], self.ranks.device)

    def step(self, batch: CausalBatch) -> tuple[float, float]:
        """Loss and gradient norm."""
        loss = self.task.loss(self.engine.model, batch)["tokens"] / len(batch.targets)
        self.engine.backward(loss, last=True)
        norm = self.engine.step(1e-4)
        return float(loss), float(norm)

    def measure(self, rows: int, tokens: int) -> dict[str, Any]:
        on_gpu = self.ranks.device.type == "cuda"
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        batch = self.batch(rows, tokens)
        for _ in range(WARM):
            self.step(batch)
        began = time.perf_counter()
        for _ in range(MEASURED):
            loss, norm = self.step(batch)  # it reads the norm, so it has ended
        seconds = (time.perf_counter() - began) / MEASURED
        found: dict[str, Any] = {"tokens_per_s": round(rows * tokens / seconds), "ms": round(1e3 * seconds)}
        found |= {"loss": round(loss, 3), "norm": round(norm, 3), "passed": bool(np.isfinite(norm))}
        if on_gpu:
            found["allocated_GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 1)
            found["reserved_GB"] = round(torch.cuda.max_memory_reserved() / 1e9, 1)
        return found

    def waits(self, batch: CausalBatch) -> dict[str, Any]:
        """Where the host waits for the GPU in one step, by torch's own account."""
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.step(batch)
        torch.cuda.set_sync_debug_mode("default")
        where = collections.Counter(
            f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchron" in str(one.message)
        )
        return {"count": sum(where.values()), "where": where.most_common(8)}

    def kernels(self, batch: CausalBatch) -> dict[str, Any]:
        activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities) as profile:
            self.step(batch)
            torch.cuda.synchronize()
        longest = sorted(profile.key_averages(), key=lambda one: -one.self_device_time_total)[:12]
        return {"top": [[one.key[:60], round(one.self_device_time_total / 1e3, 1), one.count] for one in longest]}

    def save(self) -> dict[str, Any]:
        """The copy of 1.2 GB, for which an update waits."""
        memory, state = HostMemory(), [("x", torch.zeros(300_000_000, device=self.ranks.device))]
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            memory.copy(state, after_what_is_queued(state))
            seconds.append(round(time.perf_counter() - began, 3))
        return {"seconds": seconds}


def tell(name: str, found: dict[str, Any]) -> None:
    print(json.dumps({"measured": name, **found}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    ranks = distributed.init(600)
    on_gpu = ranks.device.type == "cuda"
    flash = on_gpu and importlib.util.find_spec("flash_attn") is not None
    for attention in ("sdpa", *(["flash_attention_2"] if flash else [])):
        speed = Speed(ranks, SMALL if args.small else LARGE, attention)
        for rows, tokens in SMALL_ROWS if args.small else ROWS:
            name = f"{attention}, {rows} x {tokens} tokens, documents of {min(DOCUMENT, tokens)}"
            try:
                tell(name, speed.measure(rows, tokens))
            except torch.OutOfMemoryError as error:
                tell(name, {"passed": None, "out_of_memory": str(error).splitlines()[0][:160]})
                break
        if on_gpu:
            batch = speed.batch(1, 1024)
            tell(f"{attention}: waits of the host in a step of one micro-batch", speed.waits(batch))
            tell(f"{attention}: the longest kernels of a step, ms and calls", speed.kernels(batch))
            tell("a save's copy of 1.2 GB to pinned memory, s", speed.save())
        speed.engine.destroy()
        del speed
        if on_gpu:
            torch.cuda.empty_cache()
    sys.stdout.flush()
    os._exit(0)  # threads of gloo


if __name__ == "__main__":
    main()
