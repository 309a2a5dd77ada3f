"""Published memory and speed of real runs beside what `distft plan` says of the nearest recipes.

    python -m benchmarks.plan_literature              # the tables of docs/results/plan.md
    python -m benchmarks.plan_literature --estimate   # the constants of distft/plan/duration.py

`plan_literature.json` has the facts: where each was published, of what model, GPUs, rows and sharding. Figures lie in
two halves, by the first bit of the SHA-256 of their names: constants are estimated from one, errors counted on the
other. Kernels differ: who fuses them (torch.compile, Triton, Transformer Engine) crosses memory less often than
transformers' single kernels, which distft runs, so there is a constant for each; and the first FlashAttention, with
which the MPT models ran in 2023, is slower than today's. Both extra constants serve these comparisons only.

Figures that tell of something else (experts in a loop) are apart from both halves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from distft.plan import duration
from distft.plan.devices import Device, device
from distft.plan.duration import Parts, Rates, seconds
from distft.plan.estimate import Estimator
from distft.plan.prediction import GIB
from distft.recipe.schema import Recipe

FACTS = Path(__file__).with_suffix(".json")
FUSED = 5.8  # times that memory is crossed in each pass by fused kernels; estimated
FIRST_FLASH = 0.31  # of what matrix products reach, by the first FlashAttention; estimated
ROUNDS = 100


@dataclass(frozen=True)
class Figure:
    """
    Attributes:
        rank: of LoRA on all linear layers; None: all weights are trained.
        again: layers are computed again; None: some operations of them, which no recipe says.
        micro: micro-batches of a step.
        grads: in which gradients are sent.
        kernels: eager, fused, or first (fused but for the first FlashAttention).
        between, bandwidth: GB/s of one GPU to other nodes, and of its memory, where they are not its maker's.
        engine: DeepSpeed, whose hooks under stage 3 take time.
        speed: tokens per second and GPU. memory: GiB of a GPU, as `counted` says.
        also: what else names it.
        apart: neither half has it, as it tells of something else.
        why, memory_why: what explains a difference of speed, and of memory, by names of reasons.
    """

    source: str
    model: str
    gpu: str
    nodes: int
    per_node: int
    rows: int
    tokens: int
    stage: int
    grads: str
    kernels: str
    speed: float
    again: bool | None = False
    rank: int | None = None
    micro: int = 1
    between: float | None = None
    bandwidth: float | None = None
    engine: bool = False
    memory: float | None = None
    counted: str = ""
    also: str = ""
    apart: bool = False
    why: tuple[str, ...] = ()
    memory_why: tuple[str, ...] = ()

    @property
    def world(self) -> int:
        return self.nodes * self.per_node

    @property
    def name(self) -> str:
        trained = f"LoRA r{self.rank}" if self.rank else "full"
        again = {True: ", recomputed", None: ", partly recomputed", False: ""}[self.again]
        how = f"ZeRO {self.stage}, " if self.world > 1 else ""
        return (
            f"{self.source}: {self.model} {trained}, {self.world} x {self.gpu}, {how}{self.rows} x {self.tokens}{again}"
            f"{', ' + self.also if self.also else ''}"
        )

    @property
    def tests(self) -> bool:
        return hashlib.sha256(self.name.encode()).digest()[0] < 128


def read() -> tuple[dict[str, Any], list[Figure]]:
    facts = json.loads(FACTS.read_text(encoding="utf-8"))
    return facts, [Figure(**one) for one in facts["figures"]]


def recipe_of(figure: Figure, models: Mapping[str, Any]) -> Recipe:
    """Partial recomputation counts as none."""
    config = models[figure.model] | {"max_position_embeddings": figure.tokens}
    init = {"architecture": config.pop("architecture"), "vocab_size": config.pop("vocab_size"), "config": config}
    batch = figure.rows * figure.world * figure.micro
    return Recipe.model_validate(
        {
            "model": {"init": init, "activation_checkpointing": figure.again is True},
            "data": {"train": "/data", "row_tokens": figure.tokens, "packing": False},
            "adapter": {"type": "lora", "r": figure.rank} if figure.rank else {"type": "none"},
            "train": {"steps": 1, "global_batch": batch, "micro_batch": figure.rows},
            "engine": {"zero_stage": figure.stage, "dtype": "bf16", "grad_dtype": figure.grads, "loss_chunk": 0},
        }
    )


def device_of(figure: Figure) -> Device:
    found = device(figure.gpu)
    if figure.between is not None:
        found = replace(found, between=figure.between * 1e9)
    return found if figure.bandwidth is None else replace(found, bandwidth=figure.bandwidth * 1e9)


def parts_of(figure: Figure, models: Mapping[str, Any]) -> Parts:
    recipe, chosen = recipe_of(figure, models), device_of(figure)
    done, sizes = Estimator(figure.per_node, chosen).work(recipe, figure.nodes)
    return duration.parts(recipe, done, sizes, chosen, figure.world, figure.per_node)


@dataclass(frozen=True)
class Constants:
    """Those of `duration`, and the two that only these comparisons need."""

    reached: float = duration.REACHED
    attention: float = duration.ATTENTION
    crossed: float = duration.CROSSED
    links: float = duration.LINKS
    hidden: float = duration.HIDDEN
    launch: float = duration.LAUNCH
    launch_gathered: float = duration.LAUNCH_GATHERED
    fused: float = FUSED
    first: float = FIRST_FLASH

    def rates(self, figure: Figure) -> Rates:
        """Whoever fuses kernels launches few."""
        eager = figure.kernels == "eager"
        launch = self.launch_gathered if figure.stage == 3 and figure.engine else self.launch
        return Rates(
            self.reached,
            self.first if figure.kernels == "first" else self.attention,
            self.crossed if eager else self.fused,
            self.links,
            self.hidden,
            launch if eager else 0.0,
        )


def speed(figure: Figure, found: Parts, constants: Constants) -> float:
    """Tokens per second and GPU."""
    return figure.rows * figure.tokens / seconds(found, constants.rates(figure))


FIXED = ("reached", "attention")  # figures cannot tell these from how often memory is crossed
START = Constants(duration.REACHED, duration.ATTENTION, 10.0, 0.5, 0.5, 1e-3, 1e-3, 10.0, 0.5)
Pairs = Sequence[tuple[Figure, Parts]]


def errors(pairs: Pairs, constants: Constants) -> list[float]:
    """Logarithms of predicted over published speeds."""
    return [log(speed(figure, found, constants) / figure.speed) for figure, found in pairs]


def estimated(pairs: Pairs) -> Constants:
    """The constants with the least mean size of errors, one after the other by steps that shrink."""
    return least(lambda constants: sum(map(abs, errors(pairs, constants))))


def least(loss: Callable[[Constants], float]) -> Constants:
    best = START
    smallest, steps = loss(best), {name: 0.25 for name in asdict(best) if name not in FIXED}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            tried = [replace(best, **{name: value}) for value in around(name, getattr(best, name), step)]
            found = min(tried, key=loss)
            if loss(found) < smallest:
                best, smallest, steps[name] = found, loss(found), step * 1.3
            else:
                steps[name] = step * 0.7
    return best


def around(name: str, value: float, step: float) -> list[float]:
    """Shares end at 1."""
    both = [value * exp(sign * step) for sign in (-1, 1)]
    return both if name in ("crossed", "fused", "launch", "launch_gathered") else [min(1.0, one) for one in both]


def counted(figure: Figure, models: Mapping[str, Any]) -> float:
    """GiB as the figure counts them: what torch allocates lacks the context, and what the allocator cannot use."""
    found = Estimator(figure.per_node, device_of(figure)).predict(recipe_of(figure, models), figure.nodes)
    beyond = ("CUDA", "lost by allocator") if figure.counted == "allocated" else ()
    return sum(size for name, size in found.peak.terms.items() if name not in beyond) / GIB


def summary(name: str, pairs: Pairs, constants: Constants) -> str:
    sizes = sorted(abs(one) for one in errors(pairs, constants))
    near = sum(one < log(1.3) for one in sizes)
    return f"{name}: {len(sizes)} figures, median {exp(median(sizes)) - 1:.0%}, {near} within a factor of 1.3"


def speeds(pairs: Pairs, constants: Constants) -> None:
    print("| figure | half | predicted | published | ratio | why |\n|---|---|---|---|---|---|")
    for figure, found in pairs:
        half = "apart" if figure.apart else "test" if figure.tests else "estimate"
        expected = speed(figure, found, constants)
        ratio = expected / figure.speed
        why = ", ".join(figure.why)
        print(f"| {figure.name} | {half} | {expected:,.0f} | {figure.speed:,.0f} | {ratio:.2f} | {why} |")


def memories(figures: Sequence[Figure], models: Mapping[str, Any]) -> None:
    print("| figure | predicted, GiB | published, GiB | ratio | as | why |\n|---|---|---|---|---|---|")
    for figure in figures:
        if figure.memory is None:
            continue
        ways = [replace(figure, again=one) for one in (True, False)] if figure.again is None else [figure]
        found = [counted(one, models) for one in ways]
        ratio = " to ".join(f"{one / figure.memory:.2f}" for one in found)
        expected, why = " to ".join(f"{one:.1f}" for one in found), ", ".join(figure.memory_why)
        print(f"| {figure.name} | {expected} | {figure.memory:.1f} | {ratio} | {figure.counted} | {why} |")


def described(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, one in part.items():
        yield name, one if isinstance(one, str) else f"{one['of']} ({one['address']})"


def by_source(pairs: Pairs) -> None:
    """Each source as if it had not been known; but for the first FlashAttention, which one source alone has."""
    for source in sorted({figure.source for figure, _ in pairs if figure.kernels != "first"}):
        others = [pair for pair in pairs if pair[0].source != source]
        print(
            summary(
                f"{source}, from all others", [pair for pair in pairs if pair[0].source == source], estimated(others)
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--estimate", action="store_true", help="estimate the constants anew")
    asked = parser.parse_args()
    facts, figures = read()
    pairs = [(one, parts_of(one, facts["models"])) for one in figures]
    halves = {test: [pair for pair in pairs if not pair[0].apart and pair[0].tests is test] for test in (False, True)}
    constants = estimated(halves[False]) if asked.estimate else Constants()
    if asked.estimate:
        print(", ".join(f"{name} {value:.4g}" for name, value in asdict(constants).items()))
        by_source(halves[False] + halves[True])
    else:
        speeds(pairs, constants)
        print()
        memories(figures, facts["models"])
        print()
        for part in ("reasons", "sources"):
            print("\n".join(f"- {name}: {text}" for name, text in described(facts[part])), end="\n\n")
    for test, name in ((False, "half of the estimate"), (True, "half of the test")):
        print(summary(name, halves[test], constants))


if __name__ == "__main__":
    main()
