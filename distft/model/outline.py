"""A trained model without memory for its weights, and where stretches of each are read, for ranks that share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from distft.checkpoint.state import Stored
from distft.model import adapters, attention, bare, base_model, export
from distft.model.context import RunContext
from distft.model.weight_files import WeightFiles
from distft.recipe.adapters import AdaLora
from distft.tasks.labels import key_of
from distft.tasks.multi_task import join_models
from distft.tasks.protocol import Labels, ModelSpec

BESIDE = ("base_layer", "original_module")  # what PEFT calls a module that has got something beside it
COUNTS = ".ranknum."  # of ranks, AdaLoRA's, which no file holds


class Indivisible(Exception):
    """Such a model can only be loaded whole: why."""


@dataclass(frozen=True)
class Outline:
    """
    Attributes:
        model: with its adapter, in evaluation mode: parameters on "meta", buffers with their values.
        files: of each model of the base, by what the names of its parameters begin with.
        stored: the checkpoint; None: the base alone.
        ranks: of a fresh AdaLoRA.
        seed: of what is made anew.
    """

    model: Any
    files: Mapping[str, WeightFiles]
    stored: Stored | None
    ranks: int
    seed: int

    def check(self) -> None:
        """Raises Indivisible if some weight is nowhere."""
        for name, _ in self.model.named_parameters():
            if not (self._is_stored(name) or COUNTS in name or self._place(name)):
                raise Indivisible(f"no file holds {name}")

    def read(self, name: str, offset: int, numel: int) -> torch.Tensor:
        """Elements [offset, offset + numel) of a flattened parameter, in the dtype in which they are stored."""
        if self._is_stored(name):
            assert self.stored is not None
            return self.stored.read(name, "master", offset, numel)
        if COUNTS in name:
            return torch.full((numel,), float(self.ranks))
        place = self._place(name)
        assert place is not None
        files, inner = place
        if inner in files.names:
            return files.read_flat(inner, offset, numel)
        whole = base_model.fresh(inner, self.model.get_parameter(name).shape, self.seed)
        return whole.view(-1)[offset : offset + numel]

    def _is_stored(self, name: str) -> bool:
        return self.stored is not None and name in self.stored.shapes

    def _place(self, name: str) -> tuple[WeightFiles, str] | None:
        """The files of a parameter of the base, and its name there."""
        parts = name.removeprefix(adapters.PREFIX).split(".")
        short = ".".join(part for part in parts if part not in BESIDE)
        for prefix, files in self.files.items():
            inner = short.removeprefix(prefix)
            if short.startswith(prefix) and (inner in files.names or inner in files.missing):
                return files, inner
        return None


def outline(context: RunContext, stored: Stored | None) -> Outline:
    """The model of a run, or of `stored` None its base, as `export.load_trained` and `RunContext.load_model` make it.

    Raises:
        UserError: as they do.
        Indivisible: the files do not hold its weights one by one.
    """
    recipe = context.recipe
    if adapters.quantized(recipe.adapter):
        raise Indivisible("its base is held in 4 bits")
    if stored is not None:
        export.check_base(context, stored)
    parts, files = {}, {}
    with without_weights():
        for name, spec in context.specs.items():
            part, found = _part(context, spec.model, context.labels.get(key_of(name), ()))
            parts[name], files["" if name is None else f"parts.{name}."] = part, found
        model = join_models(parts)
        if stored is not None:
            adapter, steps = bare.unstarted(recipe.adapter), int(stored.adapter.get("total", 0))
            model = adapters.attach(model, adapter, context.model_spec, str(context.base), steps)
    for name, buffer in _persistent(model):
        for prefix, held in files.items():
            inner = name.removeprefix(adapters.PREFIX).removeprefix(prefix)
            if inner in held.names:
                buffer.copy_(held.read(inner))
    if stored is not None:
        bare.check_fits(context, stored, model)
        buffers = dict(model.named_buffers())
        for name, value in stored.buffers():
            buffers[name].copy_(value)
    ranks = recipe.adapter.init_r if isinstance(recipe.adapter, AdaLora) else 0
    made = Outline(model.eval(), files, stored, ranks, recipe.train.seed)
    made.check()
    return made


def _part(context: RunContext, spec: ModelSpec, labels: Labels) -> tuple[Any, WeightFiles]:
    """A model of transformers, and its files."""
    import transformers

    folder, recipe = context.base, context.recipe
    trusted, dtype = recipe.model.trust_remote_code, base_model.DTYPES[recipe.engine.dtype]
    by_document = attention.takes_documents(context.run, context.starts)
    chosen = attention.offered(folder, recipe, spec, by_document)
    settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trusted, **spec.head(labels))
    made = getattr(transformers, spec.auto_class).from_config(
        settings, trust_remote_code=trusted, dtype=dtype, attn_implementation=chosen
    )
    if made.can_generate() and (folder / "generation_config.json").exists():
        made.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    if (files := WeightFiles.of(folder, made)) is None:
        raise Indivisible("its files are no safetensors, or hold other weights than it computes with")
    weights = {name for name, _ in made.named_parameters(remove_duplicate=False)}
    base_model.check_missing(folder, made, files.missing & weights, spec)
    known = {id(parameter) for parameter in made.parameters()}
    spec.extend(made, labels)
    for parameter in made.parameters():
        if id(parameter) not in known:
            parameter.data = parameter.data.to(dtype)
    return made, files


@contextmanager
def without_weights() -> Iterator[None]:
    """Parameters that modules get meanwhile are on "meta"; buffers, which are small and often no file's, are not."""

    def leave_out(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return None  # as it is: it may be another module's too
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(leave_out)  # type: ignore[arg-type]  # its own type is wrong
    try:
        yield
    finally:
        handle.remove()


def _persistent(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers of the state dict."""
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and key not in module._non_persistent_buffers_set:
                yield f"{prefix}.{key}" if prefix else key, buffer
