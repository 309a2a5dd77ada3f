"""Ranks that compare the gradient an engine has added up with the float64 sum of its micro-batches' gradients.

python -m tests.dist.accumulation FILE
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
from torch.nn import functional

from distft.engine.deepspeed import Engine
from distft.process.distributed import Ranks
from tests.dist import scenario
from tests.unit.recipes import recipe

MICRO_BATCHES = 64  # over all ranks
VOCABULARY, TOKENS = 128, 32
CASES = (
    *((stage, dtype, "micro_batch") for stage in (1, 2, 3) for dtype in ("bf16", "fp32")),
    *((stage, "fp32", "step") for stage in (2, 3)),  # ZeRO 1 reduces once anyway; bf16 is the way of earlier runs
)


def main() -> None:
    ranks = scenario.join()
    model, batches = plain_model(), [tokens(number) for number in range(MICRO_BATCHES)]
    expected = plain_sum(model, batches)
    found = {
        f"{grad_dtype}, ZeRO {stage}, {reduce}": error(model, batches, expected, ranks, stage, grad_dtype, reduce)
        for stage, grad_dtype, reduce in CASES
    }
    if ranks.first:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
    scenario.leave()


def plain_model() -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCABULARY, **shape)).to(torch.bfloat16)


def tokens(number: int) -> torch.Tensor:
    """int64 [1, TOKENS], the more frequent the smaller: gradients of all batches point in similar directions."""
    draw = torch.rand(1, TOKENS, generator=torch.Generator().manual_seed(number))
    return (draw**3 * VOCABULARY).long()


def loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:]) / MICRO_BATCHES


def plain_sum(model: Any, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """By torch alone: each micro-batch's gradient as bf16 gives it, added up in float64."""
    model = copy.deepcopy(model)
    total = {name: torch.zeros(p.numel(), dtype=torch.float64) for name, p in model.named_parameters()}
    for ids in batches:
        loss(model, ids).backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad.flatten().double()
            parameter.grad = None
    return total


def error(
    model: Any,
    batches: list[torch.Tensor],
    expected: dict[str, torch.Tensor],
    ranks: Ranks,
    stage: int,
    dtype: str,
    reduce: str,
) -> float:
    """Of the whole gradient, relative, in the 2-norm."""
    settings = recipe(
        engine={"zero_stage": stage, "dtype": "bf16", "grad_dtype": dtype, "reduce": reduce},
        train={"steps": 5, "global_batch": MICRO_BATCHES, "micro_batch": 1},
    )
    engine = Engine(copy.deepcopy(model), settings, ranks)
    mine = batches[ranks.rank :: ranks.world]
    for number, ids in enumerate(mine, start=1):
        summed = loss(engine.model, ids) * ranks.world
        let_go, weights = engine.sharded_weights()
        assert let_go > weights / 2 if stage == 3 else let_go == 0  # between forward and backward
        engine.backward(summed, last=number == len(mine))
    sums = torch.zeros(2, dtype=torch.float64)
    for piece in engine.gradients(list(engine.shapes)):
        right = expected[piece.name].narrow(0, piece.offset, piece.tensor.numel())
        sums += torch.stack([(piece.tensor.double() - right).square().sum(), right.square().sum()])
    td.all_reduce(sums)
    engine.step(1e-3)
    engine.destroy()
    return float((sums[0] / sums[1]).sqrt())


if __name__ == "__main__":
    main()
