"""Export of a trained run to the formats of PEFT and transformers, from a checkpoint alone.

No process group is needed: the checkpoint holds whole tensors whatever ZeRO stage wrote it.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distft.checkpoint.best import choose_checkpoint
from distft.checkpoint.state import Stored
from distft.data.templates import Template
from distft.errors import UserError
from distft.model import adapters, base_model
from distft.model.context import RunContext
from distft.recipe.adapters import AdaLora, Lora, NoAdapter, Partial
from distft.run.commits import read_commits
from distft.run.files import complete_folder
from distft.tasks.multi_task import Shared
from distft.tasks.shared.generation import parted_ends, stops

MARK = "distft.json"  # in every export: which run and step it is of, and that it may be written over


def load_trained(context: RunContext, stored: Stored, quantized: bool = False) -> Any:
    """The model of a run in host memory, base and adapter with the weights of a checkpoint.

    Args:
        quantized: with the base in 4 bits.

    Raises:
        UserError: the base model, or the label set, is not the one of the run any more.
    """
    check_base(context, stored)
    model = attach(context, context.load_model(quantized).eval(), stored)
    check_weights(context, model, stored)
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, value in stored.weights():
            parameters[name].copy_(value)
    fill_buffers(model, stored)
    if isinstance(context.recipe.adapter, AdaLora):
        adapters.prune(model, stored.adapter.get("pattern", {}))
    return model.eval()


def check_base(context: RunContext, stored: Stored) -> None:
    """Raises UserError if the base model is not the one of the run any more."""
    run = context.run
    if base_model.digest(context.base, run.path / "base.json") != stored.identity.base:
        raise UserError(f"{context.base} is not the base model that {run.path} was trained with; restore that one")


def attach(context: RunContext, model: Any, stored: Stored) -> Any:
    """The model with the run's adapter, if it has one, whose weights are still to come from the checkpoint."""
    adapter, total_steps = context.recipe.adapter, int(stored.adapter.get("total", 0))
    if isinstance(adapter, Lora | AdaLora):  # the checkpoint has all its weights, wherever they came from
        adapter = adapter.model_copy(update={"start": None})
    return adapters.attach(model, adapter, context.model_spec, str(context.base), total_steps)


def check_weights(context: RunContext, model: Any, stored: Stored) -> None:
    """Raises UserError if the checkpoint's weights are not those of the model."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if missing := sorted(stored.shapes.keys() - shapes.keys()):
        raise UserError(f"{stored.folder} has weights that the model lacks: {missing[0]} and others")
    for name, shape in stored.shapes.items():
        if shapes[name] != shape:
            raise UserError(
                f"{name} has the shape {list(shape)} in {stored.folder} and {list(shapes[name])} in the model; "
                f"check that {context.run.labels} was not changed"
            )


def fill_buffers(model: Any, stored: Stored) -> None:
    buffers = dict(model.named_buffers())
    with torch.no_grad():
        for name, value in stored.buffers():
            buffers[name].copy_(value)


def write(
    context: RunContext,
    out: Path,
    merged: bool = False,
    last: int = 0,
    may_publish: Callable[[], None] = lambda: None,
) -> None:
    """A folder `out` that plain `peft` (adapter) or `transformers` (full or `merged` model) load; all or nothing.

    An adapter that was trained over 4 bits is merged into the base as it was before.

    Args:
        last: see `choose_checkpoint`.
        may_publish: is called when all is written, and raises if it must not take its place.

    Raises:
        UserError: `out` holds something else, or there is nothing to merge.
    """
    run, recipe = context.run, context.recipe
    if merged and isinstance(recipe.adapter, NoAdapter | Partial):
        raise UserError("--merged: this run trained the model itself, so there is no adapter to merge; leave it out")
    stored = choose_checkpoint(run, recipe, last)
    model = load_trained(context, stored)
    if merged and (tied := tied_target(model)) is not None:
        raise UserError(f"--merged: {tied} shares its weight with another layer, which would change too; leave it out")
    untied = merged and untied_copies(model)
    if merged:
        model = model.merge_and_unload()
    # a task writes into the configuration what the base leaves open: the filler of a decoder that classifies
    context.task(model.get_base_model() if hasattr(model, "get_base_model") else model)
    with complete_folder(out.resolve()) as staged:
        model.save_pretrained(staged)
        _refuse_empty(staged)
        if untied:
            check_loads(model, staged)
        processor = context.fresh_processor()  # a task may have set its own to a language
        if context.model_spec.family.chats:
            template = Template.load(processor, recipe.data)
            if processor.chat_template is None or recipe.data.template:
                processor.chat_template = template.text
            end_turns(staged, model, template)
        whole = [path.parent for path in staged.glob("*/config.json")]  # of several tasks each is complete by itself
        for folder in [staged, *whole]:
            processor.save_pretrained(folder)
        if context.labels:
            shutil.copy(run.labels, staged / run.labels.name)
        made: dict[str, Any] = {"run": run.read().name, "step": stored.progress.step}
        if commits := read_commits(run):
            made["hub"] = commits
        (staged / MARK).write_text(json.dumps(made) + "\n")
        check_target(out)
        may_publish()


def tied_target(model: Any) -> str | None:
    """A layer with an adapter whose weight is another layer's too (embeddings and the head)."""
    owners = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    layers = ((name, module) for name, module in model.named_modules() if hasattr(module, "lora_A"))
    return next((name for name, layer in layers if owners[id(layer.base_layer.weight)] > 1), None)


def untied_copies(model: Any) -> bool:
    """Whether a module was trained as a copy (`modules_to_save`) and shares a weight with another one in the base."""
    owners = Counter(id(weight) for module in model.modules() for weight in module._parameters.values())
    copied = (module.original_module for module in model.modules() if hasattr(module, "original_module"))
    return any(owners[id(weight)] > 1 for module in copied for weight in module.parameters())


def check_loads(model: Any, folder: Path) -> None:
    """Raises UserError if transformers makes another model of an export than the one that was written: it ties layers
    of some architectures whatever the files hold, and leaves weights out of the files for that."""
    parts: Mapping[str, Any] = dict(model.parts) if isinstance(model, Shared) else {"": model}
    for name, part in parts.items():
        loaded, weights = type(part).from_pretrained(folder / name, dtype=part.dtype).state_dict(), part.state_dict()
        for key in sorted(loaded.keys() & weights.keys()):
            if not torch.equal(loaded[key], weights[key].to(loaded[key].dtype)):
                raise UserError(
                    "--merged: adapter.modules_to_save has trained a layer apart from those that share its weight, and "
                    f"transformers cannot load such a {part.config.model_type} ({key} differs); leave it out"
                )


def end_turns(folder: Path, model: Any, template: Template) -> None:
    """A model stops where it was taught to, if tokens say so; of an exported adapter the base stays as it is."""
    tokens, _ = parted_ends(template.tokenizer, template.ends)
    if tokens and (folder / "generation_config.json").exists():
        model.generation_config.eos_token_id = stops(model, template.tokenizer, tokens)
        model.generation_config.save_pretrained(folder)


def check_target(out: Path) -> None:
    """Refuse to write an export over something that is none.

    Raises:
        UserError: see above.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder for the export")
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise UserError(f"{out} is not empty and not an export; give a new folder")


def _refuse_empty(folder: Path) -> None:
    """No exported tensor may be of size zero (PEFT under ZeRO-3 has written such files)."""
    from safetensors import safe_open

    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            empty = [key for key in file.keys() if 0 in file.get_slice(key).get_shape()]  # noqa: SIM118
        if empty:
            raise RuntimeError(f"{path.name}: {empty[0]} is empty")
