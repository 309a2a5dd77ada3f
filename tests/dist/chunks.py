"""Ranks that train with a chunk of logits at a time, and with all of them: the same losses and scores.

python -m tests.dist.chunks FOLDER STAGE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import distft.sample
from distft.process import distributed
from distft.process.distributed import Ranks
from distft.run.folder import RunDir
from distft.tasks.causal_lm import Causal
from distft.training.evaluation import evaluate
from tests.dist import scenario

SAMPLE = Path(distft.sample.__file__).parent
STEPS = 3
RECIPE = f"""\
model:
  init:
    architecture: llama
    vocab_size: 400
    config: {{hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
             num_key_value_heads: 1, initializer_range: 0.2}}
data: {{train: {SAMPLE}/conversations.jsonl, eval: {SAMPLE}/heldout.jsonl, row_tokens: 192, cache: CACHE}}
train: {{steps: {STEPS}, lr: 1.0e-3, schedule: constant, global_batch: 8, micro_batch: 2}}
engine: {{dtype: fp32, loss_chunk: 16}}
"""
LORA = ("adapter.type=lora", "adapter.r=4")
WAYS: dict[str, tuple[str, ...]] = {
    "full": (),
    "tied": ("model.init.architecture=qwen2", "model.init.config.tie_word_embeddings=true"),
    "recomputed": ("model.activation_checkpointing=true",),
    "adapter": LORA,
    "adapter, recomputed": (*LORA, "model.activation_checkpointing=true"),
    "frozen head": ("adapter.type=partial", "adapter.train=[model.layers.1.*]"),
    "head alone": ("adapter.type=partial", "adapter.train=[lm_head.*]"),
}


def trained(folder: Path, ranks: Ranks, *overrides: str) -> tuple[bool, list[float]]:
    """Whether logits were made in chunks; losses and norms of gradients of the steps, and then the scores."""
    opened = scenario.open_run(folder, folder.parent / "recipe.yaml", ranks, *overrides)
    opened.advance(STEPS)
    scores = evaluate(opened.session)
    assert scores is not None
    task: Any = opened.session.task
    assert isinstance(task, Causal)
    opened.close()
    steps = [record for record in RunDir(folder).records() if "loss" in record]
    figures = [record[key] for key in ("loss", "grad_norm") for record in steps]
    return task.head is not None, [*figures, scores["loss"], scores["accuracy"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("stage")
    given = parser.parse_args()
    folder, zero = given.folder, f"engine.zero_stage={given.stage}"
    ranks = scenario.join()
    if ranks.first:
        (folder / "recipe.yaml").write_text(RECIPE.replace("CACHE", str(folder / "cache")))
    distributed.barrier()
    rows = []
    for way, overrides in WAYS.items():
        used, ours = trained(folder / f"{way}-chunks", ranks, zero, *overrides)
        other, whole = trained(folder / f"{way}-whole", ranks, zero, "engine.loss_chunk=0", *overrides)
        assert (used, other) == (True, False)
        gap = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(ours, whole, strict=True))
        rows.append({"way": way, "gap": gap, "ours": ours, "whole": whole})
    if ranks.first:
        (folder / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
    scenario.leave()
