"""Bytes of live tensors in each rank's engine, counted at milestones: what `distft.plan.states` must say.

    python -m benchmarks.plan_states FILE 1 2 3          all combinations, with 1, 2 and 3 ranks; one JSON line each
    python -m benchmarks.plan_states FILE offload 1 2    with the optimizer's state in host memory
    python -m benchmarks.plan_states FILE params 1 2     with weights in host memory, and with the optimizer's state too
    python -m benchmarks.plan_states FILE once 1 2       with gradients that are reduced once per step
    python -m benchmarks.plan_states FILE small 2        with buckets much smaller than the model, as of large models

Counted are storages, each once, by what they belong to: masters, moments, weights, gradients (whatever keeps them),
buckets, and the rest, which is found by the garbage collector. RSS is not looked at. "peak" is the most bytes at once
while a milestone was being reached: what operators made, and what lived before. Activations are of four tokens.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distft.engine import configuration, deepspeed
from distft.engine.deepspeed import Engine
from distft.engine.shards import Shards
from distft.model import adapters, base_model
from distft.model.skeleton import Places
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.tasks.registry import specs_of
from tests.dist import scenario
from tests.dist.launch import run_ranks
from tests.unit.recipes import recipe

SIZES = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCABULARY, TOKENS = 2000, 4
SMALL_BUCKET = 1_000_000  # elements; half of it, with gradients in fp32 beside bf16, is less than the embedding has
ADAPTERS: dict[str, dict[str, Any]] = {"none": {"type": "none"}, "lora": {"type": "lora", "r": 16}}
OFFLOADS = {"offload": (True,), "params": (False, True)}  # of the optimizer's state
DTYPES = (("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32"))


def main() -> None:
    if "RANK" in os.environ:
        count_all(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
        return
    variant = next((word for word in sys.argv[2:] if not word.isdigit()), "plain")
    with TemporaryDirectory() as folder:
        make_base(Path(folder))
        for world in filter(str.isdigit, sys.argv[2:]):
            run_ranks("benchmarks.plan_states", int(world), sys.argv[1], folder, variant)


def count_all(file: Path, base: Path, variant: str) -> None:
    if variant == "small":
        configuration.BUCKET = SMALL_BUCKET
    ranks = scenario.join()
    deepspeed.imported()
    gc.collect()
    gc.freeze()  # modules: the collector need not look there each time
    params, offloads = variant == "params", OFFLOADS.get(variant, (False,))
    for adapter, (dtype, grad_dtype), stage, offload in itertools.product(ADAPTERS, DTYPES, (0, 1, 2, 3), offloads):
        if variant not in ("plain", "once") and (stage == 0 or (adapter != "none" and not params)):
            continue
        if (params and stage != 3) or (variant == "once" and stage < 2):
            continue
        engine = {"zero_stage": stage, "dtype": dtype, "grad_dtype": grad_dtype, "offload_optimizer": offload}
        engine |= {"offload_params": params, "reduce": "step" if variant == "once" else "micro_batch"}
        train = {"steps": 5, "global_batch": 2 * ranks.world, "micro_batch": 1}
        made = recipe(model={"path": str(base)}, adapter=ADAPTERS[adapter], engine=engine, train=train)
        if deepspeed.stage(made, ranks.world) != stage:
            continue
        found = count(made, base, ranks)
        if ranks.rank == ranks.world - 1:  # whose pieces are padded
            case = {"adapter": adapter, "dtype": dtype, "grad_dtype": grad_dtype, "stage": stage, "world": ranks.world}
            case |= {"offload": offload, "params": params, "bucket": configuration.BUCKET}
            with file.open("a") as output:
                output.write(json.dumps({**case, **found}) + "\n")
    scenario.leave()


def make_base(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def count(made: Recipe, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Bytes by term at each milestone of a first step of one micro-batch, and a second step of two."""
    gc.collect()
    before = set(storages(everything()))
    live = Live()
    spec = specs_of(made)
    shards = Shards.of(made, ranks)
    model = base_model.load(folder, made, spec, {}, places=Places(shards))
    model = adapters.attach(model, made.adapter, spec[None].model, str(folder), 10)
    model.train()
    with live.watched(before):
        engine = Engine(model, made, ranks)
    sizes = [(p.requires_grad, int(getattr(p, "ds_numel", p.numel()))) for p in model.parameters()]
    found: dict[str, Any] = {
        "trained": [size for trained, size in sizes if trained],
        "frozen": [size for trained, size in sizes if not trained],
        "at": {},
    }
    ids = torch.arange(TOKENS).view(1, -1)
    found["at"]["engine"] = by_term(engine, before) | {"peak": live.peak}
    for step in (1, 2):
        for micro in range(step):
            with live.watched(before):
                loss = engine.model(input_ids=ids, labels=ids, use_cache=False).loss
                engine.backward(loss, last=micro == step - 1)
                del loss
            found["at"][f"step {step}, micro {micro + 1}"] = by_term(engine, before) | {"peak": live.peak}
        with live.watched(before):
            engine.step(1e-3)
        found["at"][f"step {step}"] = by_term(engine, before) | {"peak": live.peak}
    engine.destroy()
    return found


class Live(TorchDispatchMode):
    """Bytes of all storages alive, and the most there were at once, as operators make them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.finalize[Any, Any]] = {}

    @contextmanager
    def watched(self, before: set[int]) -> Iterator[None]:
        """Watch what is done within, beginning with all that lives now and did not live `before`."""
        gc.collect()
        self.now = self.peak = 0
        for tensor in everything():
            if tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() not in before:
                self._add(tensor)
        with self:
            yield
        for one in self._known.values():
            one.detach()
        self._known.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tensors_of(made):
            if tensor.device.type == "cpu":
                self._add(tensor)
        return made

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if size and address not in self._known:
            self._known[address] = weakref.finalize(storage, self._forget, address, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _forget(self, address: int, size: int) -> None:
        self._known.pop(address, None)
        self.now -= size


def by_term(engine: Engine, before: set[int]) -> dict[str, int]:
    gc.collect()
    zero: Any = engine.model.optimizer
    parameters = list(engine.module.parameters())
    moments = [state[key] for state in engine._optimizer.state.values() for key in engine.optimizer.moments]
    masters = list(engine._flat_masters()) if engine._stage != 0 else []
    weights: list[torch.Tensor] = [p.data for p in parameters]
    weights += [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor")]  # type: ignore[attr-defined]
    gradients = [
        tensor for p in parameters for tensor in (p.grad, getattr(p, "grad_accum", None)) if tensor is not None
    ]
    gradients += list(tensors_of(getattr(zero, "averaged_gradients", {})))
    gradients += list(tensors_of(getattr(zero, "all_grad_tensors", {})))
    gradients += list(tensors_of(getattr(zero, "grad_partitions_flat_buffer", None)))
    buckets = list(tensors_of([b.buffer for b in getattr(zero, "ipg_buckets", {}).values()]))
    terms = {"weights": weights, "masters": masters, "moments": moments, "gradients": gradients, "buckets": buckets}
    seen = set(before)
    result = {}
    for term, tensors in {**terms, "rest": everything()}.items():
        own = {key: size for key, size in storages(tensors).items() if key not in seen}
        seen |= own.keys()
        result[term] = sum(own.values())
    return result


def tensors_of(found: Any) -> Iterator[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, dict):
        for value in found.values():
            yield from tensors_of(value)
    elif isinstance(found, list | tuple):
        for value in found:
            yield from tensors_of(value)


def everything() -> list[torch.Tensor]:
    return [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes by address."""
    found = {}
    for tensor in tensors:
        if tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage.nbytes()
    return found


if __name__ == "__main__":
    main()
