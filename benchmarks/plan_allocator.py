"""What a step of PEFT's comparison has alive, counted, and what torch's allocator would reserve for it.

    python -m benchmarks.plan_allocator                       all methods of plan_published.json but AdaLoRA
    python -m benchmarks.plan_allocator --lengths 120,700,650 DoRA

Their model, their adapter and their optimizer run on tensors that have shapes and no memory (torch's FakeTensorMode,
CPU kernels). Every storage that comes or goes is told to a model of the caching allocator as it is by default: blocks
of 512 bytes, segments of 2 MiB below 1 MiB, of 20 MiB below 10 MiB, else of their own size, best fit, blocks that are
split and joined. After the first length its cache is emptied, as their loop does before each longest batch.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.plan_published import FILE, LOST_TERM, Loop
from tests.models.live_bytes import without_memory

MIB, GIB = 1 << 20, 1 << 30


@dataclass(eq=False)
class Block:
    size: int
    large: bool
    before: Block | None = None
    after: Block | None = None
    free: bool = False


@dataclass
class Allocator:
    """Bytes that blocks in use take, and bytes of all segments, now and at most."""

    used: int = 0
    reserved: int = 0
    most_used: int = 0
    most_reserved: int = 0
    _free: list[Block] = field(default_factory=list)
    _owned: dict[int, Block] = field(default_factory=dict)

    def take(self, owner: int, wanted: int) -> None:
        size = max(512, -(-wanted // 512) * 512)
        large = size > MIB
        fitting = [block for block in self._free if block.large == large and block.size >= size]
        block = min(fitting, key=lambda one: one.size) if fitting else self._segment(size, large)
        if fitting:
            self._free.remove(block)
        block.free = False
        if block.size - size > (MIB if large else 0):
            self._split(block, size)
        self._owned[owner] = block
        self.used += block.size
        self.most_used = max(self.most_used, self.used)

    def _segment(self, size: int, large: bool) -> Block:
        segment = 2 * MIB if not large else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        self.reserved += segment
        self.most_reserved = max(self.most_reserved, self.reserved)
        return Block(segment, large)

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.size - size, block.large, block, block.after, free=True)
        if block.after is not None:
            block.after.before = rest
        block.size, block.after = size, rest
        self._free.append(rest)

    def give(self, owner: int) -> None:
        block = self._owned.pop(owner)
        self.used -= block.size
        block.free = True
        self._free.append(block)
        if block.after is not None and block.after.free:
            self._join(block, block.after)
        if block.before is not None and block.before.free:
            self._join(block.before, block)

    def _join(self, block: Block, behind: Block) -> None:
        self._free.remove(behind)
        block.size, block.after = block.size + behind.size, behind.after
        if behind.after is not None:
            behind.after.before = block

    def empty(self) -> None:
        """Segments of which no part is in use are given back."""
        unused = [block for block in self._free if block.before is None and block.after is None]
        self.reserved -= sum(block.size for block in unused)
        self._free = [block for block in self._free if block not in unused]

    def forget_peaks(self) -> None:
        self.most_used, self.most_reserved = self.used, self.reserved


class Watch(TorchDispatchMode):
    """Tells an allocator of every storage that comes and goes."""

    def __init__(self, allocator: Allocator) -> None:
        super().__init__()
        self._allocator, self._known, self._number = allocator, set[int](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        return made

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, number = storage._cdata, self._number
        if key in self._known or not storage.nbytes():
            return
        self._number += 1
        self._known.add(key)
        self._allocator.take(number, storage.nbytes())

        def gone() -> None:
            self._known.discard(key)
            self._allocator.give(number)

        weakref.finalize(storage, gone)


def adapted(model: Any, adapter: Mapping[str, Any]) -> Any:
    import peft

    if adapter["type"] == "none":
        return model
    if adapter["type"] == "partial":
        return peft.get_peft_model(model, peft.LNTuningConfig(task_type="CAUSAL_LM"))
    settings = peft.LoraConfig(
        r=adapter["r"],
        target_modules=adapter["targets"],
        use_dora=adapter.get("dora", False),
        use_rslora=adapter.get("rslora", False),
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, settings)


def steps(setting: Mapping[str, Any], adapter: Mapping[str, Any], lengths: list[int]) -> Iterator[tuple[int, int]]:
    """Most bytes in use, and most reserved, of a step of each length."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=setting["model"]["vocab_size"], attn_implementation="sdpa", **setting["model"]["config"]
    )
    allocator = Allocator()
    watch = Watch(allocator)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    model = adapted(model, adapter)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        without_memory(model)
        for tensor in (*model.parameters(), *model.buffers()):
            watch.note(tensor)
        learned = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=1e-4, weight_decay=0.1, foreach=True)
        outputs = None  # alive until the next step's are there
        with watch:
            for number, tokens in enumerate(lengths):
                allocator.forget_peaks()
                optimizer.zero_grad()
                ids = torch.zeros(setting["rows"], tokens, dtype=torch.long)
                seen = torch.ones(setting["rows"], 1, tokens, tokens, dtype=torch.bool)  # as padding makes it
                outputs = model(input_ids=ids, attention_mask=seen, labels=ids.clone(), num_items_in_batch=ids.numel())
                outputs.loss.backward()
                optimizer.step()
                yield allocator.most_used, allocator.most_reserved
                if not number:
                    allocator.empty()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="methods whose names begin so")
    parser.add_argument("--lengths", default="120,768,690", help="of batches, one step each, the first left out")
    arguments = parser.parse_args()
    lengths = [int(one) for one in arguments.lengths.split(",")]
    published = json.loads(FILE.read_text(encoding="utf-8"))
    print(
        "| method | tokens | plan, GiB | counted, GiB | error | reserved, GiB | beyond |\n|---|---|---|---|---|---|---|"
    )
    for run in published["runs"]:
        named = not arguments.names or run["method"].startswith(tuple(arguments.names))
        if run["adapter"]["type"] == "adalora" or not named:
            continue
        loop = Loop(published["setting"], run["adapter"], 0)
        found = zip(lengths, steps(loop.setting, loop.adapter, lengths), strict=True)
        for tokens, (used, reserved) in list(found)[1:]:
            moments = replace(loop, tokens=tokens).moments()
            plan = max(one.total - one.terms.get(LOST_TERM, 0) for one in moments)
            print(
                f"| {run['method']} | {tokens} | {plan / GIB:.2f} | {used / GIB:.2f} | {plan / used - 1:+.1%} | "
                f"{reserved / GIB:.2f} | {reserved / used - 1:+.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
