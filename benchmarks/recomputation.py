"""Ways to recompute activations: memory of a step on tensors without memory, and CPU time and losses of real ones.

    python -m benchmarks.recomputation          a minute; tables on the terminal

"outputs" is what torch calls selective activation checkpointing: outputs of matrix products and attention are kept and
the rest is computed again. "second" is distft's `selective`: every second layer.
"""

from __future__ import annotations

import statistics
import time
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from tests.models import real_models, shapes
from tests.models.real_models import How

ATEN = torch.ops.aten
KEPT = {
    ATEN.mm.default,
    ATEN.addmm.default,
    ATEN._scaled_dot_product_flash_attention_for_cpu.default,
}
WAYS = ("off", "outputs", "second", "full")
STEPS, ROUNDS = 6, 5


def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def enable(model: Any, way: str) -> Any:
    settings: dict[str, Any] = {"use_reentrant": False}
    if way == "outputs":
        settings["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    if way != "off":
        model.activation_checkpointing_enable(settings, every_n_layers=2 if way == "second" else 1)
    return model


def memory() -> None:
    """GB of activations and logits at the peak of a step, 4 rows of 4,096 tokens (BERT: 32 of 512), bf16."""
    patch, built = pytest.MonkeyPatch(), real_models.built
    llama, bert = shapes.llama(4096, 14336, 32, 8, 128, layers=32), shapes.bert(768, 12, layers=12)
    print("| model | " + " | ".join(WAYS) + " |")
    for name, made, how in (
        ("Llama 8 B, full", llama, How(attention="varlen", packed=True)),
        ("Llama 8 B, LoRA", llama, How(attention="varlen", packed=True, rank=16)),
        ("BERT base, full", bert, How()),
    ):
        found = []
        for way in WAYS:
            patch.setattr(real_models, "built", lambda made, how, way=way: enable(built(made, how), way))
            if made is bert:
                _, counted = real_models.of_masked_lm(made, how, 32, 512, patch)
            else:
                _, counted = real_models.of_causal_lm(made, how, 4, 4096, patch)
            found.append(f"{counted / 1e9:.1f}")
        print(f"| {name} | " + " | ".join(found) + " |", flush=True)
    patch.undo()


def seconds() -> None:
    """CPU seconds of a step on one thread, and whether losses of six steps with dropout are those without."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    ids = torch.randint(512, (2, 256), generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, list[float]] = {}
    for _, way in ((number, way) for number in range(ROUNDS) for way in WAYS):
        torch.manual_seed(0)
        settings = LlamaConfig(
            hidden_size=512,
            intermediate_size=1408,
            num_attention_heads=8,
            num_key_value_heads=4,
            num_hidden_layers=8,
            vocab_size=512,
            attention_dropout=0.1,
            use_cache=False,
        )
        model = enable(LlamaForCausalLM(settings).train(), way)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        losses[way] = []
        for step in range(STEPS):
            torch.manual_seed(step)
            begun = time.process_time()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            times[way].append(time.process_time() - begun)
            optimizer.step()
            optimizer.zero_grad()
            losses[way].append(loss.item())
    print("| way | seconds a step | times off | losses as off |")
    for way in WAYS:
        mid = statistics.median(times[way])
        print(f"| {way} | {mid:.2f} | {mid / statistics.median(times['off']):.2f} | {losses[way] == losses['off']} |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    memory()
    seconds()
