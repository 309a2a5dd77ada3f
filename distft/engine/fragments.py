"""Fragments: the pieces of the trained state that one rank holds under ZeRO."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fragment:
    """A piece of one trainable parameter's state on this rank.

    `tensors` are flat fp32 views into the optimizer's memory, [numel] each: "master", the moments, and what else is
    kept of it (see `Engine.keep`). Writing to them changes that state.
    """

    name: str
    offset: int  # of the first element in the flattened parameter
    numel: int
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Gradient:
    """This rank's piece of one parameter's gradient: a flat, writable view, in the dtype DeepSpeed gathers it in."""

    name: str
    offset: int
    tensor: torch.Tensor


@dataclass(frozen=True)
class LiveWeights:
    """What the model computes with: a flat, writable piece of a trainable parameter, in the run's dtype."""

    name: str
    offset: int
    tensor: torch.Tensor
