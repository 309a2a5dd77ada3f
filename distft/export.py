"""A trained run in the formats of PEFT and transformers, made from its newest checkpoint alone.

No process group is needed: the checkpoint holds whole tensors whatever ZeRO stage wrote it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from distft import adapters, models
from distft.checkpoint import state, store
from distft.checkpoint.state import Stored
from distft.config import AdaLora, Lora, NoAdapter, Partial, Recipe
from distft.data.templates import Template
from distft.errors import UserError
from distft.evaluation import noted
from distft.rundir import RunDir
from distft.session import base_of, make_setting
from distft.tasks.generate import stops
from distft.tasks.kinds import kind_of
from distft.tasks.task import Setting

MARK = "distft.json"  # in every export: which run and step it is of, and that it may be written over


def chosen(run: RunDir, recipe: Recipe) -> Stored:
    """The checkpoint that a run is for: the best by the score that the recipe names, else the newest.

    Raises:
        UserError: it has none yet.
    """
    folder, _ = state.newest(run.checkpoints)
    if folder is None:
        raise UserError(f"{run.path} has no checkpoint yet; `distft status {run.path}` tells how far it is")
    stored = Stored(folder)
    progress = stored.progress
    if progress.last_eval < progress.step:  # it was saved before the evaluation that a stop had broken off
        progress = noted(progress, recipe.train, scores_at(run, progress.step))
    best = store.folder_of(run.checkpoints, progress.best_step)
    if recipe.train.best is None or best == folder or not progress.best_step:
        return stored
    if (flaw := store.flaw(best)) is not None:
        raise UserError(f"the best checkpoint, {best}, cannot be used ({flaw}); leave train.best out to use the newest")
    return Stored(best)


def scores_at(run: RunDir, step: int) -> dict[str, float]:
    """Of the held-out data, as they were recorded last; empty where there was no evaluation."""
    found = [record for record in run.records() if record.get("step") == step and "eval_loss" in record]
    return {name.removeprefix("eval_"): value for name, value in found[-1].items()} if found else {}


def setting_of(run: RunDir, recipe: Recipe) -> Setting:
    """What the task of a run is made from, once the run has begun."""
    return make_setting(run, recipe, kind_of(recipe), lambda key, work: work())


def tuned(run: RunDir, recipe: Recipe, stored: Stored, quantized: bool = False) -> Any:
    """The model of a run in host memory, base and adapter with the weights of a checkpoint.

    Args:
        quantized: with the base in 4 bits.

    Raises:
        UserError: the base model, or the label set, is not the one of the run any more.
    """
    kind = kind_of(recipe)
    base = base_of(run, recipe, kind)
    if models.digest(base, run.path / "base.json") != stored.identity.base:
        raise UserError(f"{base} is not the base model any more with which {run.path} was trained; put that back")
    total_steps = int(stored.adapter.get("total", 0))
    loaded = untuned(run, recipe, quantized)
    adapter = recipe.adapter
    if isinstance(adapter, Lora | AdaLora):  # the checkpoint has all its weights, wherever they came from
        adapter = adapter.model_copy(update={"start": None})
    model = adapters.attach(loaded, adapter, kind, str(base), total_steps)
    parameters = dict(model.named_parameters())
    if missing := sorted(stored.shapes.keys() - parameters.keys()):
        raise UserError(f"{stored.folder} holds weights that the model has not: {missing[0]} and others")
    with torch.no_grad():
        for name, value in stored.weights():
            if (shape := parameters[name].shape) != value.shape:
                raise UserError(
                    f"{name} has the shape {list(value.shape)} in {stored.folder} and {list(shape)} in the model; is "
                    f"{run.labels} still the run's own?"
                )
            parameters[name].copy_(value)
        buffers = dict(model.named_buffers())
        for name, value in stored.buffers():
            buffers[name].copy_(value)
    if isinstance(recipe.adapter, AdaLora):
        adapters.prune(model, stored.adapter.get("pattern", {}))
    return model.eval()


def untuned(run: RunDir, recipe: Recipe, quantized: bool = False) -> Any:
    """The base model as it was before the run."""
    kind = kind_of(recipe)
    found = setting_of(run, recipe).labels
    return models.load(base_of(run, recipe, kind), recipe, kind, found, quantized).eval()


def write(run: RunDir, recipe: Recipe, out: Path, merged: bool = False) -> None:
    """A folder `out` that plain `peft` (adapter) or `transformers` (full or `merged` model) load; all or nothing.

    An adapter that was trained over 4 bits is merged into the base as it was before.

    Raises:
        UserError: `out` holds something else, or there is nothing to merge.
    """
    if merged and isinstance(recipe.adapter, NoAdapter | Partial):
        raise UserError("--merged: this run trained the model itself, so there is no adapter to merge; leave it out")
    stored = chosen(run, recipe)
    model = tuned(run, recipe, stored)
    if merged and (tied := tied_target(model)) is not None:
        raise UserError(f"--merged: {tied} shares its weight with another layer, which would change too; leave it out")
    out = out.resolve()
    staged = out.with_name(f".{out.name}.staged")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    if merged:
        model = model.merge_and_unload()
    kind = kind_of(recipe)
    # a task writes into the configuration what the base leaves open: the filler of a decoder that classifies
    kind.task(setting_of(run, recipe), model.get_base_model() if hasattr(model, "get_base_model") else model)
    model.save_pretrained(staged)
    _refuse_empty(staged)
    setting = setting_of(run, recipe)  # a task may have set its tokenizer to a language
    processor = setting.processor()
    if kind.vocabulary == "decoder":
        template = Template.load(processor, recipe.data.template)
        if processor.chat_template is None or recipe.data.template:
            processor.chat_template = template.text
        end_turns(staged, model, template)
    whole = [path.parent for path in staged.glob("*/config.json")]  # of several tasks each is complete by itself
    for folder in [staged, *whole]:
        processor.save_pretrained(folder)
    if setting.labels:
        shutil.copy(run.labels, staged / run.labels.name)
    (staged / MARK).write_text(json.dumps({"run": run.read().name, "step": stored.progress.step}) + "\n")
    check_target(out)
    if out.exists():
        shutil.rmtree(out)
    os.replace(staged, out)


def tied_target(model: Any) -> str | None:
    """A layer with an adapter whose weight is another layer's too (embeddings and the head)."""
    owners = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    layers = ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))
    return next((name for name, layer in layers if owners[id(layer.base_layer.weight)] > 1), None)


def end_turns(folder: Path, model: Any, template: Template) -> None:
    """A model stops where it was taught to, if one token says so; of an exported adapter the base stays as it is."""
    if (folder / "generation_config.json").exists():
        ends = template.tokenizer(template.end_of_turn.strip(), add_special_tokens=False)["input_ids"]
        if len(ends) == 1:
            model.generation_config.eos_token_id = stops(model, template.tokenizer, ends)
            model.generation_config.save_pretrained(folder)


def check_target(out: Path) -> None:
    """Refuse to write an export over something that is none.

    Raises:
        UserError: see above.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the export")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise UserError(f"{out} holds other things; name a new folder for the export")


def _refuse_empty(folder: Path) -> None:
    """No exported tensor may be of size zero (PEFT under ZeRO-3 has written such files)."""
    from safetensors import safe_open

    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            empty = [key for key in file.keys() if 0 in file.get_slice(key).get_shape()]  # noqa: SIM118
        if empty:
            raise RuntimeError(f"{path.name}: {empty[0]} is empty")
