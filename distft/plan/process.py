"""What a process on a CPU takes beyond tensors: imports, a tokenizer, libraries that work touches, compiled kernels.

Measured on models of next to nothing (`docs/results/plan-notes.md`). Ranks are forked from one process that has done
the imports, so a node has these once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from distft.plan.case import Case
from distft.recipe.adapters import Layers

MIB = 1 << 20
IMPORTS = 345 * MIB  # with what small data take
TOUCHED = {"loading": 8 * MIB, "training": 39 * MIB, "end": 65 * MIB}  # libraries, by what is done first
OWN = {"loading": 20 * MIB, "training": 35 * MIB, "end": 68 * MIB}  # of these, and of imports, what no other rank has
ADAPTERS = 9 * MIB  # imports of PEFT
TOKEN = 650  # bytes per token of a tokenizer
OBJECTS = (7 << 10, 60 << 10)  # of modules and hooks: bytes per weight of the model, and per adapter of one
HOOKED = (46 << 10, 268 << 10)  # under stage 3
WRITTEN = 10 * MIB  # pages of imports that stage 3 writes to, and so makes a rank's own
CODE, NARROW = 9 * MIB, 7 * MIB  # what products in bf16 touch of oneDNN, which ranks share, and have it make
KERNEL = int(0.55 * MIB)  # oneDNN compiles one for each shape of a product in bf16
MOST_KERNELS = 1024  # that it keeps

Work = Literal["loading", "training", "end"]
"""`end`: of rank 0, which draws a chart."""


def imports_bytes(case: Case) -> int:
    return IMPORTS + (ADAPTERS if isinstance(case.recipe.adapter, Layers) else 0)


def process_bytes(case: Case, work: Work) -> int:
    """Of one rank, as if it were alone."""
    return imports_bytes(case) + TOUCHED[work] + code_bytes(case, work) + _made(case, work)


def own_bytes(case: Case, work: Work) -> int:
    """Of one rank, without what it shares with others."""
    written = WRITTEN if case.stage == 3 and work != "loading" else 0
    return OWN[work] + written + _made(case, work)


def code_bytes(case: Case, work: Work) -> int:
    """Of kernels in bf16; pages of a file, which a node has once."""
    return CODE if case.sharding.dtype == "bf16" and work != "loading" else 0


def _made(case: Case, work: Work) -> int:
    """The tokenizer; when the model is loaded, objects around its weights; kernels."""
    found = TOKEN * _tokens(case)
    if work == "loading":
        return found
    weight, adapter = HOOKED if case.stage == 3 else OBJECTS
    own = sum(map(len, case.sizes)) - len(case.trained.added)
    found += weight * own + adapter * sum(".lora_A" in one.name for one in case.trained.added)
    if case.sharding.dtype == "bf16":
        found += NARROW + KERNEL * min(MOST_KERNELS, len(set(_products(case))))
    return found


def _tokens(case: Case) -> int:
    """Rows of the largest embedding."""
    tables = (one for stack in case.model.stacks for one in stack.other if one.kind == "embedding")
    return max((one.shape[0] for one in tables), default=0)


def _products(case: Case) -> Iterator[tuple[object, ...]]:
    """Shapes of products in forward and backward: x W, the gradient of x, and that of W if it is trained. Each expert
    is given another number of tokens; counted are those of a first step."""
    numbers = range(1, 1 + min(case.shape.rows * case.shape.tokens, _chosen(case)))
    for weight in case.model.named():
        if weight.kind != "matrix" or len(weight.shape) < 2:
            continue
        update, shape = case.update(weight.name, weight), weight.shape[-2:]
        counts = numbers if weight.experts else range(1)
        ways = 3 if update.whole else 2
        yield from ((shape, count, way) for count in counts for way in range(ways))
        if update.rank:
            halves = ((shape[0], update.rank), (update.rank, shape[1]))
            yield from ((half, 0, way) for half in halves for way in range(3))


def _chosen(case: Case) -> int:
    """How often a step of one rank gives tokens to an expert."""
    train = case.recipe.train
    layers = sum(many.count * many.feed_forward.experts for stack in case.model.stacks for many in stack.layers)
    return layers * -(-train.global_batch // (train.micro_rows * case.world))
