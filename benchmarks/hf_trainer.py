"""The peer: transformers' Trainer with DeepSpeed on the same model, the same rows in the same order, tuned.

Started by torch.distributed.run, as its users do. Writes a JSON line a step: {"step": n, "time": seconds, "loss": ...}.

    python -m torch.distributed.run --nproc-per-node 2 benchmarks/hf_trainer.py MODEL ROWS OUT --steps N --every N

Tuned: DeepSpeed's shared-memory operator, which would be compiled at the first use, is off; buckets fit the model;
AdamW is fused; no evaluation, no reports; safetensors; two checkpoints kept; saves when it is sent SIGTERM
(`enable_jit_checkpoint`); resumes by `resume_from_checkpoint` from the newest checkpoint that is whole.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False


class Rows(torch.utils.data.Dataset[dict[str, list[int]]]):
    """{"input_ids": [...], "labels": [...]}, a JSON line each."""

    def __init__(self, path: Path) -> None:
        self._rows = [json.loads(line) for line in path.read_text().splitlines()]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row: dict[str, list[int]] = self._rows[index]
        return row


class InOrder(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Clock(TrainerCallback):  # type: ignore[misc]
    """When each step ended, and what it lost."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            with open(self._path, "a") as file:
                line = {"step": state.global_step, "time": time.time(), "loss": float(logs["loss"])}
                file.write(json.dumps(line) + "\n")


def newest_whole(out: Path) -> str | None:
    """Trainer itself would take a folder in which it was killed while it saved, and fail for ever."""
    whole = [
        folder
        for folder in out.glob("checkpoint-*")
        if (folder / "trainer_state.json").exists() and not (folder / "checkpoint-is-incomplete.txt").exists()
    ]
    return str(max(whole, key=lambda folder: int(folder.name.partition("-")[2]))) if whole else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--every", type=int, required=True, help="steps between checkpoints; 0: none")
    parser.add_argument("--lora", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32, attn_implementation="sdpa")
    if args.lora:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    settings = TrainingArguments(
        output_dir=str(args.out),
        max_steps=args.steps,
        per_device_train_batch_size=1,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="steps" if args.every else "no",
        save_steps=args.every or 500,
        save_total_limit=2,
        enable_jit_checkpoint=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        deepspeed={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {
                "stage": 2,
                "reduce_bucket_size": max(trained, 100_000),
                "allgather_bucket_size": max(trained, 100_000),
            },
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "gradient_clipping": 1.0,
        },
    )
    trainer = InOrder(
        model=model,
        args=settings,
        train_dataset=Rows(args.rows),
        data_collator=lambda rows: {key: torch.tensor([row[key] for row in rows]) for key in rows[0]},
        callbacks=[Clock(args.out / "steps.jsonl")],
    )
    trainer.train(resume_from_checkpoint=newest_whole(args.out))


if __name__ == "__main__":
    main()
