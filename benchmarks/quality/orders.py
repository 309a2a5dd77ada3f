"""What the order of the rows and the numbers of dropout alone do to the scores of a plain loop of torch.

    python benchmarks/quality/orders.py phrasebank MODEL TRAIN TEST --orders 0 1 2 --lr 5e-5 --epochs 3

Neither Trainer nor distft: transformers' own model and torch's AdamW, with the settings of trainer.py, from one MODEL
that has a head (a folder written by save_pretrained, its labels in sorted order). A line of JSON per order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import accuracy_score, f1_score
from tasks import BATCH, ROW_TOKENS, TASKS, WARMUP
from transformers import AutoModelForSequenceClassification, AutoTokenizer

Rows = list[tuple[str, int]]


def padded(tokenizer: Any, rows: Rows) -> Any:
    texts = [text for text, _ in rows]
    return tokenizer(texts, padding=True, truncation=True, max_length=ROW_TOKENS, return_tensors="pt")


def trained(model: Any, tokenizer: Any, rows: Rows, epochs: int, lr: float) -> float:
    """Trains `model` in torch's next random orders. Returns the mean loss of the last quarter of the steps."""
    orders = [torch.randperm(len(rows)).tolist() for _ in range(epochs)]
    batches = [order[at : at + BATCH] for order in orders for at in range(0, len(rows), BATCH)]
    warm = WARMUP * len(batches)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0), []
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(step / warm, (len(batches) - step) / (len(batches) - warm))
        chosen = [rows[index] for index in batch]
        loss = model(**padded(tokenizer, chosen), labels=torch.tensor([label for _, label in chosen])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    last = losses[-len(losses) // 4 :]
    return sum(last) / len(last)


@torch.no_grad()
def predicted(model: Any, tokenizer: Any, rows: Rows) -> list[int]:
    model.eval()
    batches = (rows[at : at + BATCH] for at in range(0, len(rows), BATCH))
    return [label for batch in batches for label in model(**padded(tokenizer, batch)).logits.argmax(-1).tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[name for name, task in TASKS.items() if not task.words])
    for name in ("model", "train", "test"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--orders", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=5e-5)
    args = parser.parse_args()
    examples = [TASKS[args.task].read(file) for file in (args.train, args.test)]
    ids = {label: index for index, label in enumerate(sorted({str(label) for _, label in examples[0]}))}
    train, test = ([(str(text), ids[str(label)]) for text, label in part] for part in examples)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for order in args.orders:
        torch.manual_seed(order)
        model = AutoModelForSequenceClassification.from_pretrained(args.model)
        loss = trained(model, tokenizer, train, args.epochs, args.lr)
        truth, found = [label for _, label in test], predicted(model, tokenizer, test)
        of_classes = dict(zip(ids, f1_score(truth, found, average=None).round(3).tolist(), strict=True))
        print(json.dumps({"order": order, "accuracy": accuracy_score(truth, found), "f1": of_classes, "loss": loss}))


if __name__ == "__main__":
    main()
