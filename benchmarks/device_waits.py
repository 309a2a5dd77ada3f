"""How often a training step makes the host wait for the device, and what its ranks send, counted without one.

    python benchmarks/device_waits.py [--json FILE]         a minute; two processes, CPU

DeepSpeed is given an accelerator that calls itself asynchronous, computes on the CPU, and counts what a GPU would wait
for: `synchronize` of the device, of streams and of events. Reads of a tensor's value (`item`, `tolist`, a comparison in
an `if`) are counted where torch dispatches them, and so are collectives, with the bytes of their tensors on this rank.
A step has four micro-batches; the fourth step of rank 0 is counted, with gradients reduced after each micro-batch and
once (`engine.reduce`).
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import subprocess
import sys
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distft.engine.deepspeed import Engine, imported
from distft.process import distributed
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe

MICRO_BATCHES, COUNTED_STEP = 4, 4
LORA, FULL = {"type": "lora", "r": 8}, {"type": "none"}
Waits = collections.Counter[str]
waits: Waits = collections.Counter()
sent: collections.Counter[str] = collections.Counter()
library = torch.library.Library("aten", "IMPL")


def note(kind: str) -> None:
    """One wait, by the innermost line of a library or of ours that asked for it."""
    for frame in reversed(traceback.extract_stack()):
        if any(f"/{name}/" in frame.filename for name in ("deepspeed", "distft", "transformers", "peft")):
            waits[f"{kind} {Path(frame.filename).name}:{frame.lineno}"] += 1
            return


class Stream(torch.Stream):
    """A stream on which everything has happened already."""

    def __new__(cls) -> Stream:
        return super().__new__(cls, device="cpu")

    def synchronize(self) -> None:
        note("stream")

    def wait_stream(self, other: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass


class Event:
    def __init__(self, **options: Any) -> None:
        pass

    def record(self, *stream: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        note("event")


def count_waits() -> None:
    """Give DeepSpeed the counting accelerator, by its own `set_accelerator`."""
    imported()
    from deepspeed.accelerator import set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    class Counting(CPU_Accelerator):  # type: ignore[misc]
        def is_synchronized_device(self) -> bool:
            return False

        def resolves_data_dependency(self) -> bool:
            return False

        def handles_memory_backpressure(self) -> bool:
            return True

        def use_host_timers(self) -> bool:
            return True

        def synchronize(self, device_index: Any = None) -> None:
            note("device")

        def Stream(self, *given: Any, **options: Any) -> Stream:
            return Stream()

        def stream(self, stream: Any) -> Any:
            return nullcontext()

        def current_stream(self, device_index: Any = None) -> Stream:
            return Stream()

        default_stream = current_stream

        @property
        def Event(self) -> type[Event]:
            return Event

    set_accelerator(Counting())
    library.impl("record_stream", lambda tensor, stream: None, "CPU")  # torch has none


class Reads(TorchDispatchMode):
    """Counts values that are read from tensors, and collectives."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            note("value")
        if function.namespace == "c10d":
            sent[function._schema.name.removeprefix("c10d::").rstrip("_")] += 1
            sent["bytes"] += sum(one.nbytes for one in tree_leaves(args) if isinstance(one, torch.Tensor))
        return function(*args, **(kwargs or {}))


def small_model(adapter: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=128, **shape)).to(torch.bfloat16)
    if adapter["type"] == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=8, target_modules="all-linear")
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
    return model


def counted(ranks: Ranks, stage: int, adapter: dict[str, Any], reduce: str) -> tuple[Waits, Waits]:
    """Waits by line, and collectives by kind with all their bytes."""
    recipe = Recipe.model_validate(
        {
            "model": {"path": "x"},
            "train": {"steps": 9, "global_batch": 2 * MICRO_BATCHES, "micro_batch": 1},
            "adapter": adapter,
            "engine": {"zero_stage": stage, "dtype": "bf16", "reduce": reduce},
        }
    )
    # what the configuration says of a GPU
    engine = Engine(small_model(adapter), recipe, replace(ranks, device=torch.device("cuda", 0)))
    ids = torch.arange(64).view(1, 64) % 128
    positions = torch.arange(64).view(1, 64) % 32  # two documents
    for number in range(1, COUNTED_STEP + 1):
        waits.clear()
        sent.clear()
        with Reads() if number == COUNTED_STEP else nullcontext():
            for micro in range(MICRO_BATCHES):
                logits = engine.model(input_ids=ids, position_ids=positions, use_cache=False).logits
                loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:])
                engine.backward(loss / MICRO_BATCHES, last=micro == MICRO_BATCHES - 1)
            torch.stack([loss.detach(), engine.step(1e-4)]).tolist()
    found = waits.copy(), sent.copy()
    engine.destroy()
    return found


def start_ranks() -> int:
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    common.setdefault("MASTER_PORT", "29655")
    ranks = [
        subprocess.Popen([sys.executable, *sys.argv], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    return max(rank.wait() for rank in ranks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if "RANK" not in os.environ:
        sys.exit(start_ranks())
    torch.set_num_threads(1)
    count_waits()
    ranks = distributed.init(600)
    table = {}
    for name, adapter in (("lora", LORA), ("full", FULL)):
        for stage, reduce in itertools.product((1, 2, 3), ("micro_batch", "step")):
            found, collectives = counted(ranks, stage, adapter, reduce)
            kinds = collections.Counter(key.split()[0] for key in found.elements())
            if not ranks.first:
                continue
            key = f"{name}, ZeRO {stage}, reduce {reduce}"
            row = {"all": sum(found.values()), **kinds, "where": found.most_common(12), "sent": dict(collectives)}
            table[key] = row
            print(f"{key}: {sum(found.values())} waits in a step: {dict(kinds)}; {dict(collectives)}", flush=True)
            for where, times in found.most_common(12):
                print(f"    {times:4} {where}")
    if args.json and ranks.first:
        args.json.write_text(json.dumps(table, indent=1))
    sys.stdout.flush()
    os._exit(0)  # threads of gloo


if __name__ == "__main__":
    main()
