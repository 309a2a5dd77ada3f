"""Recipes to measure plans with: how one is drawn by a seed, its recipe, and its base model.

    python -m benchmarks.plan_cases --seed 1 --count 20        prints what a seed draws, and what is predicted

Every property is dealt from a deck in which all its values are equally frequent, so that a draw is even over the kinds;
so are sizes, on a logarithmic scale. A model that does not fit the memory that is given, or whose arithmetic takes too
long, is drawn again, smaller and smaller.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distft.plan.estimate import Estimator
from distft.plan.prediction import Prediction
from distft.plan.shapes import architecture_of
from distft.recipe.schema import Recipe

MIB = 1 << 20
HEAD = 64  # size of an attention head in all of these models
WORDS = 200_000  # of the data of a case, at least
FAMILIES = ("llama", "llama", "llama", "llama", "qwen3", "gpt2", "gpt2", "bert", "bert", "qwen3_moe")
MOST_WORK = 1.2e12  # FLOPs of a run: a minute on two cores
SMALLEST, DECADES = 1e7, 2  # parameters of the smallest model; the largest has 10 to the power of that many times more
FEWEST, MOST = 2, 48  # layers
EXPERTS, CHOSEN = 8, 2


@dataclass(frozen=True)
class Case:
    """One recipe. `adapter`: none, lora, adalora; `batch`: rows per step and rank; `keys`: heads of keys and values
    are so many times fewer than those of queries; `packed`: rows hold several documents."""

    name: str
    hidden: int = 512
    inner: int = 1408
    layers: int = 8
    vocabulary: int = 4096
    tied: bool = True
    row: int = 128
    micro: int = 1
    batch: int = 1
    ranks: int = 1
    stage: int = 2
    dtype: str = "fp32"
    grad_dtype: str = "fp32"
    adapter: str = "none"
    rank: int = 16
    recompute: bool = False
    architecture: str = "llama"
    task: str = "causal-lm"
    keys: int = 1
    packed: bool = True

    @property
    def data(self) -> str:
        """Name of the file of training data."""
        return "short.jsonl" if self.packed and self.task == "causal-lm" else f"long-{self.row}.jsonl"

    @property
    def base(self) -> str:
        sizes = (self.hidden, self.inner, self.layers, self.vocabulary, int(self.tied), self.keys)
        return f"{self.architecture}-{self.task}-" + "-".join(map(str, sizes))


def draw(seed: int, count: int, memory: float) -> Iterator[Case]:
    """`count` cases. `memory`: most bytes of all ranks of one together."""
    source = random.Random(seed)

    def deck(*values: Any) -> list[Any]:
        cards = list(values) * -(-count // len(values))
        source.shuffle(cards)
        return cards[:count]

    families, stages, ranks = deck(*FAMILIES), deck(0, 1, 2, 3), deck(1, 2, 4)
    dtypes = deck(("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32"))
    adapters, again = deck("none", "none", "lora", "lora", "adalora"), deck(False, False, True)
    micros, steps, tied, packed = deck(1, 1, 2, 4), deck(1, 1, 2, 3), deck(True, False), deck(True, False)
    wanted = [SMALLEST * 10 ** (DECADES * (step + source.random()) / count) for step in range(count)]
    source.shuffle(wanted)
    for number in range(count):
        dtype, grad_dtype = dtypes[number]
        case = Case(
            name=f"{seed}-{number + 1}",
            ranks=ranks[number],
            stage=stages[number],
            dtype=dtype,
            grad_dtype=grad_dtype,
            adapter=adapters[number],
            recompute=again[number],
            architecture=families[number],
            task=source.choice(("masked-lm", "sequence-classification")) if families[number] == "bert" else "causal-lm",
            tied=tied[number],
            packed=packed[number],
            micro=micros[number],
            batch=micros[number] * steps[number],
        )
        yield sized(case, source, wanted[number], memory)


def sized(case: Case, source: random.Random, wanted: float, memory: float) -> Case:
    """With sizes that fit, near `wanted` parameters or below."""
    while True:
        found = with_sizes(case, source, wanted)
        size = architecture_of(recipe_of(found)).parameters
        work = 6 * size * found.row * found.batch * found.ranks * steps(found)
        if size < SMALLEST or not FEWEST <= found.layers <= MOST or abs(size / wanted - 1) > 0.3:
            continue
        if work < MOST_WORK and together(found) < memory:
            return found
        wanted = max(SMALLEST, 0.9 * wanted)


def with_sizes(case: Case, source: random.Random, wanted: float) -> Case:
    """Sizes of the model, of rows and of the adapter, any."""
    hidden = HEAD * source.randint(4, 32)
    inner = 64 * round(hidden * source.choice((2, 8 / 3, 4)) / 64)
    inner = inner if case.architecture != "qwen3_moe" else max(64, inner // EXPERTS * 2)
    times = 2 if case.architecture in ("gpt2", "bert") else 3 * (EXPERTS if case.architecture == "qwen3_moe" else 1)
    vocabulary = source.choice((1024, 4096, 16384, 32000))
    layers = round((wanted - vocabulary * hidden) / (4 * hidden**2 + times * hidden * inner))
    return replace(
        case,
        hidden=hidden,
        inner=inner,
        layers=layers,
        vocabulary=vocabulary,
        keys=source.choice([1, 2, 4]) if hidden % (4 * HEAD) == 0 else 1,
        row=source.choice((64, 128, 256, 512, 1024)),
        rank=source.choice((4, 16, 64)),
    )


def together(case: Case) -> float:
    return case.ranks * planned(case).peak.total


def planned(case: Case) -> Prediction:
    return Estimator(case.ranks, None).predict(recipe_of(case), 1)


def init_of(case: Case) -> dict[str, Any]:
    """`model.init` of the base model."""
    heads = max(1, case.hidden // HEAD)
    if case.architecture == "gpt2":
        config: dict[str, Any] = {"n_embd": case.hidden, "n_inner": case.inner, "n_layer": case.layers, "n_head": heads}
        config |= {"tie_word_embeddings": case.tied}
        return {"architecture": "gpt2", "vocab_size": case.vocabulary, "config": config}
    config = {
        "hidden_size": case.hidden,
        "intermediate_size": case.inner,
        "num_hidden_layers": case.layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": case.tied,
    }
    if case.architecture != "bert":
        config |= {"num_key_value_heads": heads // case.keys, "head_dim": HEAD}
    if case.architecture == "qwen3_moe":
        config |= {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN, "moe_intermediate_size": case.inner}
    return {"architecture": case.architecture, "vocab_size": case.vocabulary, "config": config}


def content(case: Case, folder: Path) -> dict[str, Any]:
    """The recipe as it is written, of a model that is made from nothing."""
    adapter: dict[str, Any] = {"type": case.adapter}
    if case.adapter == "lora":
        adapter |= {"r": case.rank}
    elif case.adapter == "adalora":
        adapter |= {"init_r": case.rank, "target_r": max(1, case.rank // 2), "tinit": 1, "tfinal": 1, "delta_t": 1}
    causal = case.task == "causal-lm"
    data: dict[str, Any] = {"row_tokens": case.row, "cache": str(folder / "cache")}
    data["train"] = str(folder / case.data)
    return {
        "model": {"init": init_of(case), "activation_checkpointing": case.recompute, "attention": "sdpa"},
        "task": {"type": case.task},
        "data": data | ({"packing": case.packed} if causal else {}),
        "adapter": adapter,
        "train": {
            "steps": steps(case),
            "lr": 1e-4,
            "global_batch": case.batch * case.ranks,
            "micro_batch": case.micro,
        },
        "engine": {
            "zero_stage": case.stage,
            "dtype": case.dtype,
            "grad_dtype": case.grad_dtype,
            "loss_chunk": 0,  # this and the next as in the runs that were measured
            "reduce": "micro_batch",
        },
        "checkpoint": {"every": max(1, steps(case) // 2)},
    }


def steps(case: Case) -> int:
    """One after the first save; before it as many as AdaLoRA needs. Under stage 3 two after it: in the first steps the
    engine finds out in which order weights are used, and fetches none ahead."""
    return 4 if case.stage == 3 else 3 if case.adapter == "adalora" else 2


def recipe_of(case: Case) -> Recipe:
    return Recipe.model_validate(content(case, Path("/data")))


def write_data(case: Case, folder: Path) -> None:
    """Documents of random letters, of which no tokenizer makes long tokens. Either many share a row, or each fills 20
    rows and more, so that one which is not full is rare."""
    draw, left = random.Random(0), WORDS
    shortest, longest = (4, 24) if case.data == "short.jsonl" else (20 * case.row, 40 * case.row)
    with (folder / case.data).open("w") as file:
        while left > 0:
            words = draw.randint(shortest, longest)
            text = " ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(words))
            file.write(json.dumps({"text": text, "label": draw.choice("ab")}) + "\n")
            left -= words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--memory", type=float, default=12.0, help="most GiB of all ranks of a case")
    args = parser.parse_args()
    for case in draw(args.seed, args.count, args.memory * 1024 * MIB):
        size = architecture_of(recipe_of(case)).parameters
        print(f"{size / 1e6:.0f} M, {together(case) / MIB:,.0f} MiB together: {json.dumps(asdict(case))}")


if __name__ == "__main__":
    main()
