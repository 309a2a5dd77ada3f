"""Measured peaks of runs on CPUs beside what `distft plan` says of their recipes.

    python -m benchmarks.plan_runs docs/results/plan-measured.jsonl

The file is that of `benchmarks/plan_memory.py`. What imports take is subtracted on both sides. Only runs with the
threshold of glibc fixed count, for else freed memory stays in the process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from distft.plan.estimate import Estimator
from distft.plan.moments import PROCESS
from distft.plan.prediction import Prediction
from distft.recipe.schema import Recipe

MIB = 1 << 20
HEAD = 64  # size of an attention head in all of these models


def recipe_of(case: dict[str, Any]) -> Recipe:
    rank = case["rank"]
    adapters = {
        "none": {"type": "none"},
        "lora": {"type": "lora", "r": rank},
        "adalora": {"type": "adalora", "init_r": rank, "target_r": max(1, rank // 2)},
    }
    heads = max(1, case["hidden"] // HEAD)
    config = {
        "hidden_size": case["hidden"],
        "intermediate_size": case["inner"],
        "num_hidden_layers": case["layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "tie_word_embeddings": case["tied"],
    }
    init = {"architecture": case["architecture"], "vocab_size": case["vocabulary"], "config": config}
    return Recipe.model_validate(
        {
            "model": {"init": init, "activation_checkpointing": case["recompute"]},
            "data": {"train": "/data", "row_tokens": case["row"]},
            "adapter": adapters[case["adapter"]],
            "train": {"steps": 3, "global_batch": case["batch"], "micro_batch": case["micro"]},
            "engine": {
                "zero_stage": case["stage"],
                "dtype": case["dtype"],
                "grad_dtype": case["grad_dtype"],
                "loss_chunk": 0,
            },
        }
    )


def planned(case: dict[str, Any]) -> Prediction:
    return Estimator(case["ranks"], None).predict(recipe_of(case), 1)


def main() -> None:
    runs = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    errors = []
    print("| run | trained | ranks | predicted, MiB | at | measured, MiB | error |\n|---|---|---|---|---|---|---|")
    for run in runs:
        case = run["case"]
        if not run["threshold"] or case["name"].startswith("nothing"):
            continue
        found = planned(case)
        expected = found.peak.total - PROCESS
        measured = max(one["hwm"] for one in run["processes"] if "rank" in one["name"]) - PROCESS
        errors.append(expected / measured - 1)
        print(
            f"| {case['name']} | {run['trained'] / 1e6:.1f} M of {run['total'] / 1e6:.1f} M | {case['ranks']} | "
            f"{expected / MIB:,.0f} | {found.peak.name} | {measured / MIB:,.0f} | {errors[-1]:+.1%} |"
        )
    sizes = sorted(map(abs, errors))
    print(f"\nMedian of the errors' size: {median(sizes):.1%}; the largest: {sizes[-1]:.1%}; {len(sizes)} runs.")


if __name__ == "__main__":
    main()
