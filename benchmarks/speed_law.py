"""What speed.py compares with: the loss of each document alone, and the speed-up that leaving work out can bring."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Step = dict[str, Any]  # "documents": their numbers


class Truth:
    """The loss of each document alone, as the model comes."""

    def __init__(self, model: Path, documents: Sequence[Step]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._documents = documents
        self._known: dict[int, tuple[float, int]] = {}

    def of(self, documents: list[int]) -> float:
        """The mean over their targets."""
        for number in documents:
            if number not in self._known:
                self._known[number] = self._one(number)
        found = [self._known[number] for number in documents]
        return sum(loss for loss, _ in found) / sum(count for _, count in found)

    def _one(self, number: int) -> tuple[float, int]:
        import torch

        document = self._documents[number]
        labels = torch.tensor(document["labels"][1:])
        with torch.no_grad():
            logits = self._model(torch.tensor([document["input_ids"]])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        return loss.item(), int((labels >= 0).sum())


def law(model: Path, documents: Sequence[Step], steps: Sequence[Step], rows: int | None) -> float:
    """Of a model that takes documents without padding, against a peer that took these steps.

    Args:
        rows: documents that the peer pads to the longest of them; None: it packs them.
    """
    config = json.loads((model / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    sizes = [len(one["input_ids"]) for one in documents]
    if config["model_type"] == "qwen2":
        keys = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
        body = layers * (2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * config["intermediate_size"])
        head, causal = hidden * config["vocab_size"], 1
        targets = sum(sum(label >= 0 for label in one["labels"][1:]) for one in documents) / sum(sizes)
    else:  # BERT with a head that is next to nothing
        body = layers * (4 * hidden**2 + 2 * hidden * config["intermediate_size"])
        head, causal, targets = 0, 2, 1.0
    attention = causal * layers * hidden * sum(size * size for size in sizes) / sum(sizes)
    eta = 1.0 if rows is None else useful_share(steps, sizes, rows)
    return float((body + head + attention) / eta / (body + targets * head + attention))


def useful_share(steps: Sequence[Step], sizes: Sequence[int], rows: int) -> float:
    useful = computed = 0
    for step in steps:
        for at in range(0, len(step["documents"]), rows):
            widths = [sizes[one] for one in step["documents"][at : at + rows]]
            useful, computed = useful + sum(widths), computed + len(widths) * max(widths)
    return useful / computed
