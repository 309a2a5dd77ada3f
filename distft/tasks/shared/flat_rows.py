"""Flat rows: documents of an encoder in one row without padding, and laid out again behind its last layer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from distft.tasks.shared.boundaries import Boundaries

_LAYOUT = "flat_row"  # the argument of a model's forward by which the end of its encoder learns of the row


@dataclass(frozen=True)
class FlatRow:
    """B documents in one row beside the [B, T] in which they are padded to the longest.

    Attributes:
        places: int64 [tokens], where in the flattened [B * T] each token is.
        boundaries: where documents begin in the row; filler at its end counts as one.
        shape: (B, T).
        read: int64 [k], of the row the tokens that heads look at; None: any. The last layer is computed for these alone
            behind its attention, and other places are zero then.
    """

    places: torch.Tensor
    boundaries: Boundaries
    shape: tuple[int, int]
    read: torch.Tensor | None = None

    @classmethod
    def of(cls, sizes: Sequence[int], longest: int, width: int, order: Any = None, first: bool = False) -> Self:
        """Documents of these sizes, padded to `longest` and in a row of `width` tokens.

        Args:
            order: int [B], of the documents in the row; None: shortest first.
            first: heads look at the first token of each document alone.
        """
        order = np.argsort(sizes, kind="stable") if order is None else order
        places = np.concatenate([row * longest + np.arange(sizes[row]) for row in order])
        filler = width - len(places)
        boundaries = Boundaries.of([*(int(sizes[row]) for row in order), *([filler] if filler else [])])
        read = boundaries.begins[: len(sizes)].long() if first else None
        return cls(torch.from_numpy(places.astype(np.int64)), boundaries, (len(sizes), longest), read)

    def to(self, device: torch.device) -> FlatRow:
        boundaries = Boundaries(self.boundaries.begins.to(device), self.boundaries.sizes)
        read = None if self.read is None else self.read.to(device)
        return FlatRow(self.places.to(device), boundaries, self.shape, read)

    def flattened(self, padded: torch.Tensor, filler: int = 0) -> torch.Tensor:
        """[1, width] of [B, T]."""
        found = padded.reshape(-1)[self.places]
        return functional.pad(found, (0, sum(self.boundaries.sizes) - len(found)), value=filler).unsqueeze(0)

    def laid_out(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, ...] of [1, width, ...]; zero where there is padding. Or of [1, k, ...], the tokens that are read."""
        rows, longest = self.shape
        places = self.places
        if self.read is not None and hidden.shape[1] == len(self.read):
            places = places[self.read]
        found = hidden.new_zeros(rows * longest, *hidden.shape[2:])
        return found.index_copy(0, places, hidden[0, : len(places)]).view(rows, longest, *hidden.shape[2:])

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a model's forward whose encoder ends as `ends_in_rows` has made it end."""
        return {**self.boundaries.arguments, _LAYOUT: self}


def ends_in_rows(model: Any) -> bool:
    """Whether a model of transformers can be given a flat row, which is laid out where its encoder ends: poolers and
    heads come after that. It has to look both ways, to be told positions, and to hand on what else it is told."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    taken = inspect.signature(whole.forward).parameters
    if "position_ids" not in taken or all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in taken.values()):
        return False
    end = end_of_encoder(whole)
    if end is None:
        return False
    if _lay_out not in end._forward_hooks.values():  # several tasks may share an encoder
        end.register_forward_hook(_lay_out, with_kwargs=True)
        if (attention := last_attention(end)) is not None:
            attention.register_forward_hook(_leave_out, with_kwargs=True)
    return True


def end_of_encoder(model: Any) -> nn.Module | None:
    """The part of the base model that holds all attention, or all of it where its layers are its own. None where some
    attention looks back alone, or does not say."""
    base: nn.Module = model.base_model
    attending = [module for module in base.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    if not attending or any(module.is_causal for module in attending):
        return None
    for part in base.children():
        inside = set(part.modules())
        if not isinstance(part, nn.ModuleList | nn.ModuleDict) and all(module in inside for module in attending):
            return part
    return base


def last_attention(end: nn.Module) -> nn.Module | None:
    """The part of an encoder's last layer that holds its attention; None where layers are no list."""
    attending = [module for module in end.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    for layers in end.modules():
        if isinstance(layers, nn.ModuleList) and set(attending) <= set(layers.modules()):
            return next((part for part in layers[-1].children() if attending[-1] in part.modules()), None)
    return None


def _leave_out(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
    """A hook behind the last attention: nobody looks at the other tokens any more, which are each for itself now."""
    row: FlatRow | None = named.get(_LAYOUT)
    if row is None or row.read is None:
        return output
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    read = hidden.index_select(1, row.read)
    return read if isinstance(output, torch.Tensor) else (read, *output[1:])


def _lay_out(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
    """A hook behind the forward pass of an encoder."""
    row: FlatRow | None = named.get(_LAYOUT)
    if row is None:
        return output
    if isinstance(output, torch.Tensor):
        return row.laid_out(output)
    if isinstance(output, tuple):
        return row.laid_out(output[0]), *output[1:]
    output["last_hidden_state"] = row.laid_out(output["last_hidden_state"])
    return output
