"""Ranks that train a mixture of experts on packed rows, beside a plain loop with transformers' own balance loss.

    python -m tests.dist.routers FOLDER

The plain loop feeds one document at a time, puts what the routers chose for the documents of a micro-batch together,
and gives that to transformers' function, which the product never calls.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import distft.sample
from distft.process import distributed
from distft.run.folder import RunDir
from distft.training.session import Session
from tests.dist import scenario
from tests.dist.tasks import single_view

SAMPLE = Path(distft.sample.__file__).parent
STEPS, LR, WEIGHT = 4, 1.0e-3, 0.1
RECIPE = f"""\
model:
  init:
    architecture: mixtral
    vocab_size: 400
    config: {{hidden_size: 32, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
             num_key_value_heads: 1, num_local_experts: 4, num_experts_per_tok: 2, initializer_range: 0.2,
             router_aux_loss_coef: {WEIGHT}}}
data: {{train: {SAMPLE}/conversations.jsonl, row_tokens: 192, cache: CACHE}}
train: {{steps: {STEPS}, lr: {LR}, schedule: constant, global_batch: 8, micro_batch: 2}}
engine: {{dtype: fp32}}
"""


def plain_loop(session: Session) -> list[list[float]]:
    """The loss of each step, and what the balance adds to it."""
    model: Any = AutoModelForCausalLM.from_pretrained(session.run.base, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    history = []
    for number in range(STEPS):
        micros = [session.loader.documents(micro) for micro in session.loader.step(number)]
        targets = sum(int(document["targets"].sum()) for rows in micros for row in rows for document in row)
        found = [0.0, 0.0]
        for rows in micros:
            total, chosen = torch.zeros(()), []
            for document in (document for row in rows for document in row):
                tokens = torch.from_numpy(document["tokens"].astype("int64"))
                labels = torch.where(torch.from_numpy(document["targets"].copy()), tokens, -100)
                output = model(input_ids=tokens[None], output_router_logits=True)
                logits = output.logits[0, :-1]
                total = total + functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
                chosen.append(output.router_logits)
            layers = tuple(torch.cat(parts) for parts in zip(*chosen, strict=True))
            balance = load_balancing_loss_func(layers, 4, 2) * (WEIGHT / len(micros))
            loss = total / targets + balance
            loss.backward()
            found = [found[0] + loss.item(), found[1] + balance.item()]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        history.append(found)
    return history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    ranks = scenario.join()
    config = folder / "recipe.yaml"
    if ranks.first:
        config.write_text(RECIPE.replace("CACHE", str(folder / "cache")))
    distributed.barrier()
    rows: list[dict[str, Any]] = []
    for stage, again in ((0, False), (1, False), (2, True), (3, False), (3, True)):
        run = folder / f"zero{stage}-{again}"
        overrides = [f"engine.zero_stage={stage}", f"model.activation_checkpointing={str(again).lower()}"]
        opened = scenario.open_run(run, config, ranks, *overrides)
        opened.advance(STEPS)
        opened.close()
        if ranks.first:
            if not rows:
                plain = plain_loop(single_view(opened.session))
            ours = [[record["loss"], record["loss.router"]] for record in RunDir(run).records() if "loss" in record]
            gap = max(abs(a - b) for one, two in zip(ours, plain, strict=True) for a, b in zip(one, two, strict=True))
            rows.append({"stage": stage, "again": again, "gap": gap, "ours": ours, "plain": plain})
    if ranks.first:
        (folder / f"routers-{ranks.world}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
    scenario.leave()
