"""The model of a trained run without its weights, and those weights a stretch at a time."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch

from distft.checkpoint.state import Stored
from distft.errors import UserError
from distft.model import adapters
from distft.model.context import RunContext
from distft.model.skeleton import NOWHERE
from distft.model.weight_files import WeightFiles
from distft.recipe.adapters import AdaLora, Adapter, Lora

STRETCH = 1 << 22  # elements that are read at a time


class NeedsWhole(Exception):
    """Why an export cannot be made a tensor at a time, in words."""


class Weights:
    """The values that parameters and buffers of a bare model would have if the run was loaded: trained ones from the
    checkpoint, the others from the files of the base model.

    A tensor of the model stands for itself, whatever it is called after modules were wrapped or replaced.
    """

    def __init__(self, model: Any, stored: Stored, files: WeightFiles | None, in_files: dict[int, str]) -> None:
        """
        Args:
            model: with its adapter.
            files: None: they do not hold the model's weights one to one.
            in_files: what the files call a tensor of the base model, by its id.
        """
        self._model = model  # ids are of tensors that live
        self._stored, self._files, self._in_files = stored, files, in_files
        self._trained = {id(p): name for name, p in model.named_parameters() if name in stored.shapes}
        kept = set(stored.buffer_names())
        self._buffers = {id(b): name for name, b in model.named_buffers(remove_duplicate=False) if name in kept}
        self._ranks = {
            id(fixed): float(layer.r[adapters.NAME])
            for layer in model.modules()
            for fixed in getattr(layer, "ranknum", {}).values()
        }  # numbers that AdaLoRA multiplies with; PEFT keeps them as parameters

    def check_files(self) -> None:
        """Raises NeedsWhole if weights of the base model cannot be read one at a time."""
        if self._files is None:
            raise NeedsWhole("the base model's weights have other names or forms in its files than in memory")

    def knows(self, tensor: torch.Tensor) -> bool:
        known = (self._trained, self._buffers, self._ranks, self._in_files)
        return not tensor.is_meta or any(id(tensor) in one for one in known)

    def stretches(self, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
        """All of it, flattened: consecutive pieces [at most STRETCH] on the CPU, in the dtype of `tensor`."""
        for offset in range(0, tensor.numel(), STRETCH):
            yield self._read(tensor, offset, min(STRETCH, tensor.numel() - offset)).to(tensor.dtype)

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """In memory of its own, so that it may be changed."""
        result, offset = torch.empty(tensor.shape, dtype=tensor.dtype), 0
        flat = result.view(-1)
        for piece in self.stretches(tensor):
            flat[offset : offset + len(piece)] = piece
            offset += len(piece)
        return result

    def _read(self, tensor: torch.Tensor, offset: int, numel: int) -> torch.Tensor:
        own = id(tensor)
        if own in self._trained:
            return self._stored.read(self._trained[own], "master", offset, numel)
        if own in self._buffers:
            return self._stored.buffer(self._buffers[own]).reshape(-1)[offset : offset + numel]
        if own in self._ranks:
            return torch.full((numel,), self._ranks[own])
        if not tensor.is_meta:  # a task has made it
            return tensor.detach().reshape(-1)[offset : offset + numel]
        assert self._files is not None
        return self._files.read_flat(self._in_files[own], offset, numel)


def load_bare(context: RunContext, stored: Stored) -> tuple[Any, Weights]:
    """What `export.load_trained` gives, with a model on the device "meta".

    Raises:
        NeedsWhole: the weights of this model cannot be had one at a time.
        UserError: the checkpoint is of another model.
    """
    if len(context.specs) > 1:
        raise NeedsWhole("the run has several tasks")
    if not list(context.base.glob("*.safetensors")):  # transformers would read others to the end
        raise NeedsWhole("the weights of the base model are not in safetensors files")
    if "quantization_config" in json.loads((context.base / "config.json").read_text(encoding="utf-8")):
        raise NeedsWhole("the base model is quantised")
    base = context.load_model(places=NOWHERE).eval()
    base.tie_weights(recompute_mapping=False)  # transformers has not where only values tell, which are looked at below
    files = WeightFiles.of(context.base, base)
    tensors = [*base.named_parameters(remove_duplicate=False), *base.named_buffers(remove_duplicate=False)]
    in_files = {id(tensor): name for name, tensor in tensors if files is not None and name in files.names}
    adapter, total_steps = unstarted(context.recipe.adapter), int(stored.adapter.get("total", 0))
    model = adapters.attach(base, adapter, context.model_spec, str(context.base), total_steps)
    check_fits(context, stored, model)
    return model.eval(), Weights(model, stored, files, in_files)


def unstarted(adapter: Adapter) -> Adapter:
    """Without what it began with: a checkpoint has all its weights, wherever they came from."""
    return adapter.model_copy(update={"start": None}) if isinstance(adapter, Lora | AdaLora) else adapter


def check_fits(context: RunContext, stored: Stored, model: Any) -> None:
    """Raises UserError if the checkpoint has parameters that the model has not, or not in that shape."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if missing := sorted(stored.shapes.keys() - shapes.keys()):
        raise UserError(f"{stored.folder} has weights that the model lacks: {missing[0]} and others")
    for name, shape in stored.shapes.items():
        if shapes[name] != shape:
            raise UserError(
                f"{name} has the shape {list(shape)} in {stored.folder} and {list(shapes[name])} in the model; "
                f"check that {context.run.labels} was not changed"
            )


def fill_adapter(model: Any, weights: Weights, stored: Stored) -> None:
    """Give a bare model the weights that PEFT writes: those of its adapter, and of the base what it adds to them.

    Raises:
        NeedsWhole: it writes others.
    """
    from peft import get_peft_model_state_dict

    own = dict(model.named_parameters(remove_duplicate=False))
    wanted = {name for name in own if name in stored.shapes}
    added = {name for name, tensor in get_peft_model_state_dict(model).items() if tensor.is_meta and name in own}
    values = {name: weights.whole(own[name]) for name in sorted(wanted | added) if weights.knows(own[name])}
    model.load_state_dict(values, strict=False, assign=True)
    if lacking := [name for name, tensor in get_peft_model_state_dict(model).items() if tensor.is_meta]:
        raise NeedsWhole(f"{lacking[0]} is written with the adapter")


def mergeable(model: Any) -> dict[str, Any]:
    """The layers with an adapter, by name.

    Raises:
        NeedsWhole: one is merged together with others, or by more than its own weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        if hasattr(layer, "unload_and_optionally_merge_module") or list(layer.get_base_layer().children()):
            raise NeedsWhole(f"{name} is not merged by itself")
    return layers


def merge(layer: Any, weights: Weights) -> dict[str, torch.Tensor]:
    """The parameters of one layer with its adapter merged into them, by name, on the CPU. Nothing else is made, and
    `layer` stays on "meta"."""
    own = copy.deepcopy(layer)
    values = {name: weights.whole(tensor) for name, tensor in layer.state_dict(keep_vars=True).items()}
    own.load_state_dict(values, assign=True)
    with torch.no_grad():
        own.merge()
    return {name: parameter.detach() for name, parameter in own.get_base_layer().named_parameters()}
