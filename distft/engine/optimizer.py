"""Optimizers as values: how to build each one, and the state it keeps per parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distft.recipe.schema import Recipe, Train

Groups = list[dict[str, Any]]  # torch's parameter groups


@dataclass(frozen=True)
class OptimizerSpec:
    """All that the engine and the checkpoint need to know about an optimizer.

    Attributes:
        id: in checkpoints, names the meaning of `moments`.
        moments: keys of torch's state of a parameter that are fp32 tensors of its shape; all start at zero.
        build: the optimizer over parameter groups, with the settings of `train`. Its state also has a "step".
    """

    id: str
    moments: tuple[str, ...]
    build: Callable[[Groups, Train], torch.optim.Optimizer]

    def initial_state(self, master: torch.Tensor) -> dict[str, torch.Tensor]:
        """torch's state of `master` (fp32, any shape) before the first step."""
        moments = {key: torch.zeros_like(master.detach()) for key in self.moments}
        return {"step": torch.tensor(0.0, device=master.device), **moments}


def _adamw(groups: Groups, train: Train) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups,
        lr=train.lr,
        betas=(train.betas[0], train.betas[1]),
        eps=train.eps,
        weight_decay=train.weight_decay,
        # one pass over the state and no temporaries as large as it, on a CPU eight times as fast
        fused=True,
    )


ADAMW = OptimizerSpec("adamw", ("exp_avg", "exp_avg_sq"), _adamw)
_SPECS = {"adamw": ADAMW}  # by optimizer.type


def groups_of(
    parameters: Mapping[str, torch.nn.Parameter],
    shapes: Mapping[str, tuple[int, ...]],
    rate_of: Callable[[str], float],
    train: Train,
) -> Groups:
    """Parameters that are trained alike: "rate", what their learning rate is multiplied by, and their weight decay.

    Args:
        shapes: whole, where the parameters are sharded.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decays = train.decay == "all" or len(shapes[name]) > 1
        groups.setdefault((rate_of(name), train.weight_decay if decays else 0.0), []).append(parameter)
    return [{"params": own, "rate": rate, "weight_decay": decay} for (rate, decay), own in groups.items()]


def optimizer_of(recipe: Recipe) -> OptimizerSpec:
    return _SPECS[recipe.optimizer.type]
