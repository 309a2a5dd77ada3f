"""How often stage 3 gathers weights in a micro-batch: counted in real ranks, beside `distft.plan.duration`.

    python -m benchmarks.plan_gathered

Two ranks with gloo, whole training, with recomputation or without, of models of more and fewer layers: the engine keeps
what comes again within an eighth of the model, so that fewer layers, which are larger parts of it, are gathered once
more. Counted are the elements that come out of collective operations, over those of the model, in the third
micro-batch: in the first DeepSpeed only learns the order.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distft.engine.deepspeed import Engine
from distft.engine.shards import Shards
from distft.model import base_model
from distft.model.skeleton import Places
from distft.plan.duration import gathered_again
from distft.plan.shapes import architecture_of
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.tasks.registry import specs_of
from tests.dist import scenario
from tests.dist.launch import run_ranks
from tests.unit.recipes import recipe

RANKS, TOKENS, VOCABULARY = 2, 8, 260  # few words, so that layers are most of the model
LAYERS = (2, 4, 8, 16)


class Gathered(TorchDispatchMode):
    """Elements that come out of all-gathers."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and "allgather" in func.name():
            self.elements += sum(one.numel() for one in tensors(args[0]))
        return func(*args, **(kwargs or {}))


def tensors(of: Any) -> list[torch.Tensor]:
    return [of] if isinstance(of, torch.Tensor) else [one for part in of for one in tensors(part)]


def wanted(layers: int, again: bool) -> Recipe:
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": layers, "num_attention_heads": 2}
    init = {"architecture": "llama", "vocab_size": VOCABULARY, "config": {**sizes, "num_key_value_heads": 2}}
    engine = {"zero_stage": 3, "dtype": "bf16", "grad_dtype": "fp32"}
    return recipe(model={"init": init, "activation_checkpointing": again}, engine=engine)


def counted(made: Recipe, folder: Path, ranks: Ranks) -> float:
    shards = Shards.of(made, ranks)
    model = base_model.load(folder, made, specs_of(made), {}, places=Places(shards))
    model.train()
    engine = Engine(model, made, ranks)
    ids, found = torch.arange(TOKENS).view(1, -1), Gathered()
    for _ in range(3):
        found = Gathered()
        with found:
            loss = engine.model(input_ids=ids, labels=ids, use_cache=False).loss
            engine.backward(loss, last=True)
            del loss
        engine.step(1e-3)
    whole = sum(int(getattr(one, "ds_numel", one.numel())) for one in model.parameters())
    engine.destroy()
    return found.elements / whole


def main() -> None:
    if "RANK" not in os.environ:
        with TemporaryDirectory() as folder:
            for layers in LAYERS:
                make_base(Path(folder) / str(layers), layers)
            run_ranks("benchmarks.plan_gathered", RANKS, folder)
            print("| layers | recomputed | predicted | counted |\n|---|---|---|---|")
            print((Path(folder) / "table").read_text(encoding="utf-8"), end="")
        return
    count_all(Path(sys.argv[1]))


def count_all(folder: Path) -> None:
    ranks = scenario.join()
    with open(folder / f"table{ranks.rank or ''}", "w", encoding="utf-8") as table:
        for layers in LAYERS:
            for again in (False, True):
                made = wanted(layers, again)
                model = architecture_of(made)
                expected = 2 + (gathered_again(model) / model.parameters if again else 0)
                table.write(
                    f"| {layers} | {again} | {expected:.2f} | {counted(made, folder / str(layers), ranks):.2f} |\n"
                )
    scenario.leave()


def make_base(folder: Path, layers: int) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    made = wanted(layers, False).model.init
    assert made is not None
    AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCABULARY, **made.config)).save_pretrained(folder)


if __name__ == "__main__":
    main()
