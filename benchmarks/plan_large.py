"""What `distft plan` says of large models on 8 to 64 H100, as distft runs them.

    python -m benchmarks.plan_large

ZeRO 3, bf16 with fp32 gradients, activation checkpointing, one row of 4,096 tokens a micro-batch, 64 rows a step;
configurations of `plan_literature.json`, LoRA of rank 16 on all linear layers, of the mixture on attention only.
"""

from __future__ import annotations

from typing import Any

from benchmarks.plan_literature import read
from distft.plan.devices import device
from distft.plan.estimate import Estimator
from distft.plan.prediction import text_of
from distft.recipe.schema import Recipe

GPU, PER_NODE, TOKENS, ROWS = "H100-80GB", 8, 4096, 64
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Llama-3.1-70B", "LoRA r16", {"type": "lora", "r": 16}),
    ("Llama-3.1-8B", "full", {"type": "none"}),
    ("Qwen3-30B-A3B", "full", {"type": "none"}),
    ("Qwen3-30B-A3B", "LoRA r16", {"type": "lora", "r": 16, "targets": ATTENTION}),
)
TERMS = ("weights", "fp32 masters", "moments", "gradients", "buckets", "gathered weights", "activations")


def recipe_of(config: dict[str, Any], adapter: dict[str, Any]) -> Recipe:
    sizes = config | {"max_position_embeddings": TOKENS}
    init = {"architecture": sizes.pop("architecture"), "vocab_size": sizes.pop("vocab_size"), "config": sizes}
    return Recipe.model_validate(
        {
            "model": {"init": init, "activation_checkpointing": True},
            "data": {"train": "/data", "row_tokens": TOKENS, "packing": False},
            "adapter": adapter,
            "train": {"steps": 1, "global_batch": ROWS, "micro_batch": 1},
            "engine": {"zero_stage": 3, "dtype": "bf16", "grad_dtype": "fp32"},
        }
    )


def main() -> None:
    models = read()[0]["models"]
    print(f"| model | trained | GPUs | {' | '.join(TERMS)} | peak | at | fits | tokens/s per GPU |")
    print("|" + "---|" * (len(TERMS) + 7))
    for model, trained, adapter in RUNS:
        for nodes in (1, 2, 4, 8):
            found = Estimator(PER_NODE, device(GPU)).predict(recipe_of(dict(models[model]), adapter), nodes)
            assert found.step_seconds is not None
            rate = found.step_tokens / found.step_seconds / found.world
            peak = found.peak
            terms = " | ".join(text_of(peak.terms.get(name, 0)) for name in TERMS)
            fits = "yes" if found.fits else "no"
            print(
                f"| {model} | {trained} | {found.world} | {terms} | {text_of(peak.total)} | {peak.name} | {fits} | "
                f"{rate:,.0f} |"
            )


if __name__ == "__main__":
    main()
