"""How far the gradient of a step is from that of fp32 weights, by the number of micro-batches that add up to it.

    python benchmarks/gradient_precision.py [--json FILE]         two minutes; one process, CPU

A small Llama in bf16 under the product's engine, beside the same weights in fp32 in plain torch. A micro-batch is 64
bytes of the embedded sample. The error is that of the whole gradient, relative, in the 2-norm; what is left with sums
in fp32 is the noise of forward and backward in bf16.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
}
os.environ.setdefault("MASTER_PORT", "29656")

import numpy as np
import torch
from torch.nn import functional

import distft.sample
from distft.engine.deepspeed import Engine
from distft.process import distributed
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe

NUMBERS, TOKENS, VOCABULARY = (8, 64, 256), 64, 1000


def batches(number: int) -> list[torch.Tensor]:
    """int64 [1, TOKENS] each."""
    text = Path(distft.sample.__file__).with_name("conversations.jsonl").read_bytes()
    values = np.frombuffer(text, np.uint8)[: number * TOKENS].astype(np.int64).reshape(number, 1, TOKENS)
    return [torch.from_numpy(one.copy()) for one in values]


def loss(model: Any, ids: torch.Tensor, number: int) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]) / number


def plain_gradient(model: Any, data: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model).float()
    for ids in data:
        loss(model, ids, len(data)).backward()
    return {name: parameter.grad.flatten() for name, parameter in model.named_parameters()}


def error(model: Any, data: list[torch.Tensor], right: dict[str, torch.Tensor], ranks: Ranks, **engine: Any) -> float:
    recipe = Recipe.model_validate(
        {"model": {"path": "x"}, "train": {"steps": 1}, "engine": {"dtype": "bf16", **engine}}
    )
    under_zero = Engine(copy.deepcopy(model), recipe, ranks)
    for place, ids in enumerate(data, start=1):
        under_zero.backward(loss(under_zero.model, ids, len(data)), last=place == len(data))
    wrong = whole = 0.0
    for piece in under_zero.gradients(list(under_zero.shapes)):
        expected = right[piece.name].narrow(0, piece.offset, piece.tensor.numel())
        wrong += float((piece.tensor.float() - expected).square().sum())
        whole += float(expected.square().sum())
    under_zero.step(1e-4)
    under_zero.destroy()
    return float((wrong / whole) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCABULARY, **shape)).to(torch.bfloat16)
    ranks = distributed.init(600)
    table = []
    for number in NUMBERS:
        data = batches(number)
        right = plain_gradient(model, data)
        for stage in (1, 2, 3):
            for grad_dtype in ("bf16", "fp32"):
                found = error(model, data, right, ranks, zero_stage=stage, grad_dtype=grad_dtype)
                table.append({"micro_batches": number, "zero_stage": stage, "grad_dtype": grad_dtype, "error": found})
                print(f"{number:4} micro-batches, ZeRO {stage}, sums in {grad_dtype}: {100 * found:.3f} %", flush=True)
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))
    sys.stdout.flush()
    os._exit(0)  # threads of gloo


if __name__ == "__main__":
    main()
