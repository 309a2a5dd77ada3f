"""The files of weights that an export writes, known before any weight is read, and what is in each tensor."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from distft.checkpoint.layout import Layout, lay_out
from distft.checkpoint.state import Stored
from distft.model.bare import NeedsWhole, Weights, load_bare, merge, mergeable
from distft.model.context import RunContext
from distft.model.shared_weights import check_merges, untied_copies


@dataclass
class Values:
    """The values of what is written: weights as they are, and layers with their adapter merged. One layer at a time is
    in memory.

    Args:
        outputs: tensors of the bare model, by their names in the files.
        layers: that are merged, by name; empty: none.
    """

    weights: Weights
    outputs: Mapping[str, torch.Tensor]
    layers: Mapping[str, Any]
    _owners: dict[int, tuple[str, str]] = field(init=False)
    _last: tuple[str, dict[str, torch.Tensor]] = field(default=("", {}), init=False)

    def __post_init__(self) -> None:
        self._owners = {
            id(parameter): (name, own)
            for name, layer in self.layers.items()
            for own, parameter in layer.get_base_layer().named_parameters()
        }
        for name, tensor in self.outputs.items():
            if id(tensor) not in self._owners and not self.weights.knows(tensor):
                raise NeedsWhole(f"{name} is neither in the checkpoint nor in the base model's files")

    def stretches(self, name: str) -> Iterator[torch.Tensor]:
        """Consecutive pieces of one tensor, flattened."""
        tensor = self.outputs[name]
        if id(tensor) not in self._owners:
            yield from self.weights.stretches(tensor)
            return
        layer, own = self._owners[id(tensor)]
        if self._last[0] != layer:
            self._last = "", {}  # the one before is let go first
            self._last = layer, merge(self.layers[layer], self.weights)
        yield self._last[1][own].reshape(-1)


@dataclass(frozen=True)
class ExportPlan:
    """An export of a whole model.

    Attributes:
        model: of transformers, on "meta": what it saves beside weights is right.
        index: the content of the file that says which tensor is in which of several files; None: there is one file.
    """

    model: Any
    layouts: Sequence[Layout]
    index: str | None
    values: Values


def plan_export(context: RunContext, stored: Stored, merged: bool, max_file: int | str | None = None) -> ExportPlan:
    """How the whole model of a run is written without being in memory.

    Args:
        max_file: bytes of one file at most, or as transformers reads it ("50GB"); default: what transformers takes.

    Raises:
        NeedsWhole: it cannot be.
        UserError: an adapter cannot be merged, or the checkpoint is of another model.
    """
    model, weights = load_bare(context, stored)
    weights.check_files()
    layers: dict[str, Any] = {}
    if merged:
        check_merges(model)
        if untied_copies(model):
            raise NeedsWhole("a layer was trained apart from those that share its weight")
        layers = mergeable(model)
        model = model.unload()
    outputs = saved(model)
    try:
        layouts, index = files(model, outputs, max_file or default_size(model))
    except KeyError as error:
        raise NeedsWhole(f"it has tensors of type {error}") from None
    return ExportPlan(model, layouts, index, Values(weights, outputs, layers))


def saved(model: Any) -> dict[str, torch.Tensor]:
    """The tensors that `save_pretrained` writes, by their names in the files and in its order: the model's own, as far
    as they are not converted."""
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    if type(model).save_pretrained is not PreTrainedModel.save_pretrained:
        raise NeedsWhole("its architecture has a way of its own to be saved")
    state: dict[str, torch.Tensor] = dict(model.state_dict(keep_vars=True))
    own = {id(tensor) for tensor in state.values()}
    for name in model._keys_to_ignore_on_save or ():
        state.pop(name, None)
    state = remove_tied_weights_from_state_dict(state, model)
    state = revert_weight_conversion(model, state)
    if changed := next((name for name, tensor in state.items() if id(tensor) not in own), None):
        raise NeedsWhole(f"{changed} is made of several weights, or a part of one")
    return state


def default_size(model: Any) -> int | str:
    """Of a file, where transformers is not told."""
    size: int | str = inspect.signature(model.save_pretrained).parameters["max_shard_size"].default
    return size


def files(model: Any, outputs: Mapping[str, torch.Tensor], max_file: int | str) -> tuple[list[Layout], str | None]:
    """Layouts of all files, and the index; raises KeyError as `lay_out` does."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(
        dict(outputs), filename_pattern="model{suffix}.safetensors", max_shard_size=max_file
    )
    named = split.filename_to_tensors.items()
    layouts = [lay_out(file, {name: outputs[name] for name in names}) for file, names in named]
    if not split.is_sharded:
        return layouts, None
    about = {"total_parameters": model.num_parameters(), **split.metadata}
    index = {"metadata": about, "weight_map": split.tensor_to_filename}
    return layouts, json.dumps(index, indent=2, sort_keys=True) + "\n"
