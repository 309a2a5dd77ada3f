"""A trained model in the memory of one process, or of the ranks of a group together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from distft.checkpoint.state import Stored
from distft.engine import gathering
from distft.inference.groups import Group
from distft.model import adapters, export, outline, tensor_parallel
from distft.model.context import RunContext
from distft.model.outline import Indivisible

T = TypeVar("T")


def no_one_waits() -> None:
    pass


@dataclass(frozen=True)
class Held:
    """
    Attributes:
        model: in evaluation mode, on its device.
        group: the ranks that hold it; None: this one.
        how: they do, in words.
        plain: its modules compute with whole weights.
        own_rows: each rank computes with rows of its own; else all with the same.
        attend: is called when this rank has nothing to compute, before the ranks do anything else together.
    """

    model: Any
    group: Group | None = None
    how: str = ""
    plain: bool = True
    own_rows: bool = True
    attend: Callable[[], None] = no_one_waits

    def share(self, batches: Iterable[T]) -> Iterable[T]:
        """Those that this rank computes."""
        if self.group is None or not self.own_rows:
            return batches
        return itertools.islice(batches, self.group.rank, None, self.group.size)


def load(context: RunContext, stored: Stored | None, group: Group | None, device: torch.device) -> Held:
    """The model of a checkpoint, or of `stored` None the base model. Collective.

    Raises:
        UserError: see `export.load_trained`.
    """
    if group is None:
        return Held(whole(context, stored, device))
    try:
        made = outline.outline(context, stored)
    except Indivisible as why:
        return Held(whole(context, stored, device), group, f"each rank holds the whole model: {why}")
    try:
        tensor_parallel.check(context, made, group.size)
    except Indivisible as why:
        gathered = gathering.shard(made.model, made.read, device)
        how = f"{group.size} ranks hold the model together and gather each layer while it computes ({why})"
        return Held(made.model, group, how, attend=gathered.attend)
    torch.manual_seed(group.told(torch.initial_seed()))  # all ranks choose the same words
    how = f"{group.size} ranks hold the model together, each a part of each matrix"
    return Held(tensor_parallel.load(context, made), group, how, plain=False, own_rows=False)


def whole(context: RunContext, stored: Stored | None, device: torch.device) -> Any:
    if stored is None:
        model = context.load_model()
    else:
        model = export.load_trained(context, stored, adapters.quantized(context.recipe.adapter))
    return model.to(device).eval()
