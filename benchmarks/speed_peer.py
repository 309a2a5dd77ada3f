"""The peers of speed.py: transformers' Trainer, as it comes and grouped by length, and TRL's packing.

    python benchmarks/speed_peer.py default|grouped|packed MODEL DOCUMENTS OUT --steps N --rows N ...

One process without DeepSpeed, which is the fastest way that a Trainer has on one device. DOCUMENTS has a line
{"input_ids": [...], "labels": [...] or a number} per document, the tokens that distft trains on. Writes a line per
step: {"step", "time": when it ended, "loss", "tokens": useful ones, "documents": their numbers}.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

CLASSES = {
    "causal": AutoModelForCausalLM,
    "texts": AutoModelForSequenceClassification,
    "words": AutoModelForTokenClassification,
}
IGNORED = -100
Row = dict[str, Any]


class Padded:
    """What transformers' collators do: rows padded to the longest."""

    def __init__(self, of_texts: bool) -> None:
        self._of_texts, self.seen = of_texts, list[list[int]]()

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        self.seen.append([row["number"] for row in rows])
        width = max(len(row["input_ids"]) for row in rows)
        found = {"input_ids": _filled([row["input_ids"] for row in rows], width, 0)}
        found["attention_mask"] = _filled([[1] * len(row["input_ids"]) for row in rows], width, 0)
        if self._of_texts:
            return {**found, "labels": torch.tensor([row["labels"] for row in rows])}
        return {**found, "labels": _filled([row["labels"] for row in rows], width, IGNORED)}


def _filled(rows: list[list[int]], width: int, value: int) -> torch.Tensor:
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


class Seen(TrainerCallback):  # type: ignore[misc]
    """When each step ended, what it lost, and the documents that were in it."""

    def __init__(self, path: Path, collator: Any, per_step: int, sizes: list[int]) -> None:
        self._path, self._collator, self._per_step, self._sizes = path, collator, per_step, sizes

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now, step = time.time(), state.global_step
        batches = self._collator.seen[(step - 1) * self._per_step : step * self._per_step]
        documents = [number for batch in batches for number in batch]
        tokens = sum(self._sizes[number] for number in documents)
        line = {"step": step, "time": now, "loss": float(logs["loss"]), "tokens": tokens, "documents": documents}
        with open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")


def model_of(kind: str, folder: Path, labels: int, lora: bool) -> Any:
    given = {} if kind == "causal" else {"num_labels": labels}
    model: Any = CLASSES[kind].from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **given)
    if not lora:
        return model
    from peft import LoraConfig, get_peft_model

    types = {"causal": "CAUSAL_LM", "texts": "SEQ_CLS", "words": "TOKEN_CLS"}
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=types[kind]))


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Tuned: fused AdamW, no reports, no checkpoints, no workers that one core would be shared with."""
    return {
        "output_dir": str(args.out.with_suffix("")),
        "max_steps": args.steps,
        "per_device_train_batch_size": args.rows,
        "gradient_accumulation_steps": args.accumulation,
        "learning_rate": args.lr,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "seed": args.seed,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }


def trainer_of(args: argparse.Namespace, model: Any, rows: list[Row]) -> tuple[Trainer, Any]:
    """A Trainer of one of the three ways, and its collator, which has seen the documents."""
    if args.way == "packed":
        return packed(args, model, rows)
    collator = Padded(args.kind == "texts")
    if args.way == "grouped":
        for row in rows:
            row["length"] = len(row["input_ids"])
    strategy = "group_by_length" if args.way == "grouped" else "random"
    given = TrainingArguments(**settings_of(args), train_sampling_strategy=strategy, remove_unused_columns=False)
    return Trainer(model=model, args=given, train_dataset=rows, data_collator=collator), collator


def packed(args: argparse.Namespace, model: Any, rows: list[Row]) -> tuple[Trainer, Any]:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    numbers = {tuple(row["input_ids"]): row["number"] for row in rows}
    given = SFTConfig(
        **settings_of(args), packing=True, max_length=args.row_tokens, packing_strategy="bfd", loss_type="nll"
    )
    data = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
    trainer = SFTTrainer(
        model=model,
        args=given,
        train_dataset=data,
        processing_class=PreTrainedTokenizerFast.from_pretrained(args.model),
    )
    trainer.data_collator = Apart(trainer.data_collator, numbers)
    return trainer, trainer.data_collator


class Apart:
    """TRL's own collator; the documents that it put together are told by their tokens."""

    def __init__(self, collator: Any, numbers: dict[tuple[int, ...], int]) -> None:
        self._collator, self._numbers, self.seen = collator, numbers, list[list[int]]()

    def __call__(self, rows: list[Row]) -> Any:
        batch = self._collator(rows)
        tokens, places = batch["input_ids"].flatten().tolist(), batch["position_ids"].flatten().tolist()
        begins = [at for at, place in enumerate(places) if place == 0] + [len(tokens)]
        documents = [tuple(tokens[begin:end]) for begin, end in itertools.pairwise(begins)]
        self.seen.append([self._numbers[one] for one in documents])
        return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=["default", "grouped", "packed"])
    parser.add_argument("model", type=Path)
    parser.add_argument("documents", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=list(CLASSES), default="causal")
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True, help="per forward pass")
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--row-tokens", type=int, default=1024, help="of a packed row")
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--lora", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rows = [{**json.loads(line), "number": at} for at, line in enumerate(args.documents.read_text().splitlines())]
    model = model_of(args.kind, args.model, args.labels, args.lora)
    trainer, collator = trainer_of(args, model, rows)
    trainer.add_callback(Seen(args.out, collator, args.accumulation, [len(row["input_ids"]) for row in rows]))
    trainer.train()


if __name__ == "__main__":
    main()
