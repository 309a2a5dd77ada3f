"""What the plan's formulas say of fine-tuning that others have measured on a GPU: PEFT's comparison of its methods.

    python -m benchmarks.plan_published                   as long as a text there can be
    python -m benchmarks.plan_published --tokens 600      what another longest text would change

`plan_published.json` holds their figures with their source. They train Llama-3.2-3B on one L40S with a plain loop of
torch (AdamW, weights in bf16, adapters in fp32), so the loop's states are added up here. Shapes, what is trained,
activations, logits and the allocator's share are the plan's.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from distft.plan.activations import Activations, activations
from distft.plan.architecture import Architecture, Weight
from distft.plan.loss import Batch, Computing
from distft.plan.moments import LOST
from distft.plan.operations import FP32, Numbers, Update
from distft.plan.prediction import GIB, Moment
from distft.plan.shapes import architecture_of
from distft.plan.trained import Trained, trained, updates
from distft.recipe.adapters import AdaLora
from distft.recipe.schema import Recipe

FILE = Path(__file__).with_suffix(".json")
BF16 = 2
ADAM = 2  # tensors per trained element
LOST_TERM = "lost by allocator"
IMPORTANCE = 3  # more of AdaLoRA: of each element, and two averages


@dataclass(frozen=True)
class Loop:
    """Their script with one of their configurations."""

    setting: Mapping[str, Any]
    adapter: Mapping[str, Any]
    tokens: int

    @property
    def recipe(self) -> Recipe:
        return Recipe.model_validate(
            {
                "model": {"init": self.setting["model"]},
                "data": {"train": "/data", "row_tokens": self.tokens},
                "adapter": self.adapter,
                "train": {"steps": 1, "global_batch": self.rows, "micro_batch": self.rows},
                "engine": {"dtype": "bf16", "loss_chunk": 0},
            }
        )

    @property
    def rows(self) -> int:
        return int(self.setting["rows"])

    def moments(self) -> Iterator[Moment]:
        """Peaks of a step; reserved memory is what torch counts, so CUDA's context is no part of it."""
        recipe = self.recipe
        model = architecture_of(recipe)
        found = trained(model, recipe)
        alive = self.activations(model, found)
        kept, gradients = self.states(model, found), gradient_bytes(found)
        kept |= {"outputs": self.outputs(model)}
        for moment in alive.moments:
            if moment.name != "optimizer":
                lost = {LOST_TERM: int(LOST * moment.size)}
                reached = {"gradients": int(gradients * moment.backward), "activations": moment.size}
                yield Moment(moment.name, {**kept, **reached, **lost})
        yield Moment("update", {**kept, "gradients": gradients, "square roots": gradients})
        yield Moment("generation", {**kept, "outputs": self.generated(model)})

    def states(self, model: Architecture, found: Trained) -> dict[str, int]:
        """Adapters, their gradients and moments are in fp32; of weights that are trained where they are, in bf16."""
        added = sum(weight.size for weight in found.added)
        kept = {
            "weights": BF16 * model.parameters + FP32 * added,
            "moments": ADAM * gradient_bytes(found),
        }
        if isinstance(self.recipe.adapter, AdaLora):
            kept["importance"] = IMPORTANCE * FP32 * added
        return kept

    def activations(self, model: Architecture, found: Trained) -> Activations:
        """Of the longest batch, whose shorter rows are padded: attention gets a mask, and all places have logits."""
        update, places = updates(found, self.recipe.adapter), self.rows * self.tokens

        def exact(name: str, weight: Weight) -> Update:
            return replace(update(name, weight), exact=True)

        computing = Computing(Numbers(BF16, "cuda"), "sdpa", exact, gathered=False)
        return activations(model, Batch(self.rows, self.tokens, places, places, mask=True), computing)

    def outputs(self, model: Architecture) -> int:
        """The loop has a name for what the model returns, so this lives until the next step: logits, and keys and
        values, of which transformers makes a cache in training too."""
        places = self.rows * self.tokens
        return BF16 * places * model.vocabulary + cache_bytes(model, places)

    def generated(self, model: Architecture) -> int:
        """At most, for evaluation: a cache, of which one layer is copied at a time."""
        return cache_bytes(model, self.setting["generated_rows"] * self.setting["generated_tokens"])


def gradient_bytes(found: Trained) -> int:
    return BF16 * sum(one.size for one in found.own) + FP32 * sum(one.size for one in found.added)


def cache_bytes(model: Architecture, places: int) -> int:
    shapes = [(layers.count, layers.attention) for stack in model.stacks for layers in stack.layers]
    return sum(BF16 * places * count * one.keys * (one.size + one.value_size) for count, one in shapes if one)


def most_tokens(published: Mapping[str, Any]) -> int:
    """No more can be alive than is reserved, so the longest text has no more tokens than this."""

    def fits(tokens: int, run: Mapping[str, Any]) -> bool:
        moment = predicted(published, run, tokens)
        return moment.total - moment.terms.get(LOST_TERM, 0) <= int(run["reserved_max"])

    lengths = range(1, published["setting"]["longest"] + 1)
    return min(bisect(lengths, 0, key=lambda tokens: not fits(tokens, run)) for run in published["runs"])


def predicted(published: Mapping[str, Any], run: Mapping[str, Any], tokens: int | None = None) -> Moment:
    setting = published["setting"]
    moments = Loop(setting, run["adapter"], tokens or setting["longest"]).moments()
    return max(moments, key=lambda moment: moment.total)


def in_order(found: Mapping[str, tuple[int, int]]) -> tuple[list[str], list[str]]:
    """Pairs of methods by (predicted, measured): those that are predicted in the wrong order, and those that are one
    computation to the plan, and so have none."""
    wrong, same = [], []
    for (name, a), (other, b) in combinations(found.items(), 2):
        if (order := (a[0] - b[0]) * (a[1] - b[1])) < 0:
            wrong.append(f"{name} and {other}")
        elif not order:
            same.append(f"{name} and {other} ({a[1] / b[1] - 1:+.2%} measured)")
    return wrong, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, help="of the longest text; default: as many as their settings allow")
    tokens = parser.parse_args().tokens
    published = json.loads(FILE.read_text(encoding="utf-8"))
    found, errors = dict[str, tuple[int, int]](), []
    print("| method | trained | predicted, GiB | at | published, GiB | error |\n|---|---|---|---|---|---|")
    for run in published["runs"]:
        moment = predicted(published, run, tokens)
        measured = run["reserved_max"]
        found[run["method"]] = moment.total, measured
        errors.append(moment.total / measured - 1)
        print(
            f"| {run['method']} | {run['trained'] / 1e6:.2f} M | {moment.total / GIB:.2f} | {moment.name} | "
            f"{measured / GIB:.2f} | {errors[-1]:+.1%} |"
        )
    sizes, (wrong, same) = sorted(map(abs, errors)), in_order(found)
    print(f"\nMedian of the errors' size: {median(sizes):.1%}; the largest: {sizes[-1]:.1%}; {len(sizes)} runs.")
    print(f"Pairs in the wrong order: {', '.join(wrong) or 'none'}.")
    print(f"Pairs that are the same to the plan: {', '.join(same) or 'none'}.")
    print(f"What is counted, with nothing lost, fits into all published figures up to {most_tokens(published)} tokens.")


if __name__ == "__main__":
    main()
