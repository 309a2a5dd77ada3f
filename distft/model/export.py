"""Export of a trained run to the formats of PEFT and transformers, from a checkpoint alone.

No process group is needed: the checkpoint holds whole tensors whatever ZeRO stage wrote it. A model is written a tensor
at a time, or loaded whole where that cannot be done; which way it is makes no difference to a byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from distft.checkpoint import store
from distft.checkpoint.best import choose_checkpoint
from distft.checkpoint.state import Stored
from distft.data.templates import Template
from distft.errors import UserError, first_line
from distft.model import adapters, base_digest, base_model
from distft.model.bare import NeedsWhole, check_fits, fill_adapter, load_bare, unstarted
from distft.model.context import RunContext
from distft.model.export_pieces import drop_notes, write_weights
from distft.model.export_plan import ExportPlan, plan_export
from distft.model.shared_weights import check_merges, untied_copies
from distft.process.memory import memory_given
from distft.recipe.adapters import AdaLora, NoAdapter, Partial
from distft.run.commits import read_commits
from distft.run.files import complete_folder
from distft.tasks.multi_task import Shared
from distft.tasks.shared.generation import parted_ends, stops

MARK = "distft.json"  # in every export: which run and step it is of, and that it may be written over
LIBRARIES = ("distft", "torch", "transformers", "peft", "safetensors")  # whose versions decide what is written


def load_trained(context: RunContext, stored: Stored, quantized: bool = False) -> Any:
    """The model of a run in host memory, base and adapter with the weights of a checkpoint.

    Args:
        quantized: with the base in 4 bits.

    Raises:
        UserError: the base model, or the label set, is not the one of the run any more.
    """
    check_base(context, stored)
    loaded = context.load_model(quantized).eval()
    total_steps = int(stored.adapter.get("total", 0))
    adapter = unstarted(context.recipe.adapter)
    model = adapters.attach(loaded, adapter, context.model_spec, str(context.base), total_steps)
    check_fits(context, stored, model)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    with torch.no_grad():
        for name, value in stored.weights():
            parameters[name].copy_(value)
        for name, value in stored.buffers():
            buffers[name].copy_(value)
    if isinstance(adapter, AdaLora):
        adapters.prune(model, stored.adapter.get("pattern", {}))
    return model.eval()


def check_base(context: RunContext, stored: Stored) -> None:
    """Raises UserError if the base model is not the one that the checkpoint belongs to."""
    if base_digest.digest(context.base) != stored.identity.base:
        raise UserError(
            f"{context.base} is not the base model that {context.run.path} was trained with; restore that one"
        )


def write(
    context: RunContext,
    out: Path,
    merged: bool = False,
    last: int = 0,
    may_publish: Callable[[], None] = lambda: None,
    ranks: int = 1,
    say: Callable[[str], None] = print,
) -> None:
    """A folder `out` that plain `peft` (adapter) or `transformers` (full or `merged` model) load; all or nothing.

    An adapter that was trained over 4 bits is merged into the base as it was before. A whole model that was begun and
    not finished is continued.

    Args:
        last: see `choose_checkpoint`.
        may_publish: is called when all is written, and raises if it must not take its place.
        ranks: processes that write a whole model, at most.
        say: is told why a model has to be loaded whole.

    Raises:
        UserError: `out` holds something else, there is nothing to merge, or the model does not fit into memory.
    """
    run, recipe = context.run, context.recipe
    if merged and isinstance(recipe.adapter, NoAdapter | Partial):
        raise UserError("--merged: this run trained the model itself, so there is no adapter to merge; leave it out")
    stored = choose_checkpoint(run, recipe, last)
    check_base(context, stored)
    ready = prepare(context, stored, merged, say)
    with complete_folder(out.resolve(), content_of(stored, merged) if ready.plan else None) as staged:
        ready.save(staged, ranks)
        _refuse_empty(staged)
        add_processor(context, ready.model, staged)
        if context.labels:
            shutil.copy(run.labels, staged / run.labels.name)
        made: dict[str, Any] = {"run": run.read().name, "step": stored.progress.step}
        if commits := read_commits(run):
            made["hub"] = commits
        (staged / MARK).write_text(json.dumps(made) + "\n")
        check_target(out)
        may_publish()
        drop_notes(staged)


@dataclass(frozen=True)
class Ready:
    """What is about to be written.

    Attributes:
        model: as transformers or PEFT save it; with the weights that are written, unless there is a plan for them.
        untied: whether transformers may make another model of what is written.
    """

    model: Any
    plan: ExportPlan | None = None
    untied: bool = False

    def save(self, folder: Path, ranks: int) -> None:
        if self.plan is None:
            self.model.save_pretrained(folder)
        else:
            self.model.save_pretrained(folder, state_dict={})  # all but the weights
            write_weights(folder, self.plan, ranks)
        if self.untied:
            check_loads(self.model, folder)


def prepare(context: RunContext, stored: Stored, merged: bool, say: Callable[[str], None]) -> Ready:
    """The model to write: without the weights of the base, if that can be; this is where it is decided."""
    try:
        return configured(context, apart(context, Stored(stored.folder, mapped=False), merged))
    except (NeedsWhole, NotImplementedError, RuntimeError) as reason:  # torch's, of what cannot be done on "meta"
        say(f"the export loads the whole model into memory: {first_line(reason)}")
    check_memory(context)
    return configured(context, whole(context, stored, merged))


def configured(context: RunContext, ready: Ready) -> Ready:
    """With what the base leaves open and a task writes into the configuration: the filler of a decoder that
    classifies."""
    context.task(ready.model.get_base_model() if hasattr(ready.model, "get_base_model") else ready.model)
    return ready


def apart(context: RunContext, stored: Stored, merged: bool) -> Ready:
    """With an adapter in memory, or nothing. Raises NeedsWhole, or UserError if the adapter cannot be merged."""
    if merged or isinstance(context.recipe.adapter, NoAdapter | Partial):
        plan = plan_export(context, stored, merged)
        return Ready(plan.model, plan)
    model, weights = load_bare(context, stored)
    fill_adapter(model, weights, stored)
    if isinstance(context.recipe.adapter, AdaLora):
        adapters.prune(model, stored.adapter.get("pattern", {}))
    return Ready(model)


def whole(context: RunContext, stored: Stored, merged: bool) -> Ready:
    """With all weights in memory. Raises UserError if the adapter cannot be merged."""
    model = load_trained(context, stored)
    if not merged:
        return Ready(model)
    check_merges(model)
    untied = untied_copies(model)
    return Ready(model.merge_and_unload(), untied=untied)


def check_memory(context: RunContext) -> None:
    """Raises UserError if the whole model needs more than this process may use, instead of being killed."""
    with torch.device("meta"):
        elements = sum(parameter.numel() for parameter in context.shape().parameters())
    needed, given = elements * base_model.DTYPES[context.recipe.engine.dtype].itemsize, memory_given()
    if needed > given:
        raise UserError(
            f"the export of this model needs {needed / 1e9:,.1f} GB of host memory and {given / 1e9:,.1f} GB may be "
            f"used here; on a machine with more: distft export {context.run.path} OUT"
        )


def content_of(stored: Stored, merged: bool) -> str:
    """A short name of all that decides the bytes of an export."""
    manifest = (stored.folder / store.MANIFEST).read_text(encoding="utf-8")
    parts = [manifest, stored.identity.base, str(merged), *map(version, LIBRARIES)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def add_processor(context: RunContext, model: Any, folder: Path) -> None:
    """The tokenizer, with the template that the run was trained with, beside each model that is complete by itself."""
    processor = context.fresh_processor()  # a task may have set its own to a language
    if context.model_spec.family.chats:
        template = Template.load(processor, context.recipe.data)
        if processor.chat_template is None or context.recipe.data.template:
            processor.chat_template = template.text
        end_turns(folder, model, template)
    for place in [folder, *(path.parent for path in folder.glob("*/config.json"))]:
        processor.save_pretrained(place)


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
