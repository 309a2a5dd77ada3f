"""Runs that look trained: a tiny model, and a checkpoint with other weights, without a step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

import distft.sample
from distft.checkpoint import store
from distft.checkpoint.state import STATE
from distft.model import adapters, base_digest
from distft.model.context import RunContext
from distft.recipe.adapters import AdaLora
from distft.recipe.load import dump, load
from distft.run.folder import RunDir
from tests.dist.tasks import TASKS

SAMPLE = Path(distft.sample.__file__).parent
STEP = 4
CAUSAL = "task: {type: causal-lm}\ndata: {train: %s/handbook.jsonl, row_tokens: 64, cache: %s}"


def trained_run(folder: Path, task: str, adapter: str, dtype: str, model: str = "", seed: int = 0) -> RunContext:
    """A run in `folder` with a base model and a checkpoint of step `STEP`.

    Args:
        task: a name in `tests.dist.tasks.TASKS`, or "causal".
        adapter: a section of a recipe, as YAML.
        model: `model.init`; default: that of the task.
    """
    own, sections = TASKS.get(task, ("", CAUSAL))
    lines = [
        (sections % (SAMPLE, folder / "cache")).replace("SAMPLE", str(SAMPLE)),
        f"model: {{init: {(model or own).replace('%s', '0.0')}}}",
        f"adapter: {adapter}",
        "train: {steps: 40, global_batch: 8, micro_batch: 2}",
        f"engine: {{dtype: {dtype}}}",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text("\n".join(lines) + "\n")
    run, recipe = RunDir(folder / "run"), load(folder / "recipe.yaml", [])
    run.create("x", dump(recipe))
    write_checkpoint(RunContext(run, recipe, starts=True), seed)
    return RunContext(run, recipe)


def write_checkpoint(context: RunContext, seed: int) -> None:
    """Trained weights are those of the beginning and some noise."""
    run, recipe = context.run, context.recipe
    adapter, total = recipe.adapter, 40
    base = context.base  # it may be made only now
    model = adapters.attach(context.load_model(), adapter, context.model_spec, str(base), total)
    noise = torch.Generator().manual_seed(seed)
    tensors, shapes, pattern = [], {}, {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        value = parameter.detach().float() + 0.05 * torch.randn(parameter.shape, generator=noise)
        if isinstance(adapter, AdaLora) and ".lora_E." in name:
            kept = torch.rand(len(value), generator=noise) > 0.4
            value[~kept] = 0.0
            pattern[name.partition(".lora_E.")[0]] = kept.tolist()
        shapes[name] = list(value.shape)
        flat = value.view(-1)
        tensors += [
            (f"{name}|0|master", flat[: len(flat) // 2]),
            (f"{name}|{len(flat) // 2}|master", flat[len(flat) // 2 :]),
        ]
    kept_buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)} & model.state_dict().keys()
    tensors += [(f"{name}|0|buffer", model.get_buffer(name)) for name in sorted(kept_buffers)]
    state = {
        "format": 1,
        "progress": {"step": STEP, "next_row": 0, "useful_tokens": 0, "last_eval": 0},
        "identity": {
            "base": base_digest.digest(base), "rows": "", "tokenizer": "", "versions": {}
        },
        "optimizer": {"id": "adamw", "step": STEP, "tensors": []},
        "adapter": {"total": total, "pattern": pattern} if pattern else {},
        "master_dtype": "float32",
        "parameters": shapes,
        "aliases": {},
    }  # fmt: skip
    shutil.rmtree(store.folder_of(run.checkpoints, STEP), ignore_errors=True)
    store.prepare_stage(run.checkpoints, STEP, 0)
    staged = store.stage_folder(run.checkpoints, STEP)
    digests = [
        store.write_tensors(staged / "rank-00000.safetensors", [(name, value.contiguous()) for name, value in tensors]),
        store.write_text(staged / STATE, json.dumps(state)),
    ]
    store.commit(run.checkpoints, STEP, digests)
