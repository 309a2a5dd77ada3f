"""Routers of a mixture of experts: where they are in a model, and the loss that keeps their experts evenly used."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from distft.errors import UserError

ROUTER = "router"  # the name of the loss
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")  # what configurations call the number of experts


def settings_of(model: Any) -> Any:
    """Its configuration; of one for texts and images that of the text's part."""
    config = getattr(model, "config", None)
    try:
        return config.get_text_config()  # type: ignore[union-attr]
    except (AttributeError, ValueError):  # not of transformers, or with several parts for texts
        return config


def experts_of(model: Any) -> int | None:
    """The number of experts that a router chooses from; None if there is none."""
    found = (getattr(settings_of(model), name, None) for name in COUNTS)
    return next((number for number in found if isinstance(number, int) and number > 1), None)


def routers_of(model: Any) -> list[str]:
    """Names of modules whose every matrix has a row for each expert, and which stand beside the experts: weights of
    three dimensions, or a list of as many modules."""
    experts = experts_of(model)
    if experts is None:
        return []
    found = []
    for name, parent in model.named_modules():
        beside = dict(parent.named_children())
        widths = {width for child in beside.values() for width in _numbers_of_experts(child)}
        if experts in widths:
            here = [child for child in beside if _routes(beside[child], widths)]
            found += [f"{name}.{child}" if name else child for child in here]
    return found


def _numbers_of_experts(module: Any) -> set[int]:
    """How many experts there are in a module itself; some weights may hold a few more, which do nothing."""
    if isinstance(module, torch.nn.ModuleList):
        return {len(module)}
    shapes = (_shape(parameter) for parameter in module.parameters(recurse=False))
    return {shape[0] for shape in shapes if len(shape) == 3}


def _routes(module: Any, widths: set[int]) -> bool:
    shapes = [shape for shape in map(_shape, module.parameters()) if len(shape) > 1 and shape[0] > 1]
    return bool(shapes) and all(len(shape) == 2 and shape[0] in widths for shape in shapes)


def _shape(parameter: Any) -> Sequence[int]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # whole, where ZeRO-3 shards it


def linear_routers(model: Any) -> list[str]:
    """Names of the linear layers in routers."""
    inside = tuple(routers_of(model))
    linear = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    return [name for name in linear if any(name == one or name.startswith(f"{one}.") for one in inside)]


@dataclass(frozen=True)
class Routers:
    """The routers of a model that tells what they have chosen.

    Args:
        model: of transformers; adapters come into it later.
        names: of the modules.
        chosen: experts per token.
        own: the weight of their loss in the model's configuration.
        wanted: that in the recipe.
    """

    model: Any
    names: Sequence[str]
    chosen: int
    own: float
    wanted: float | None

    @cached_property
    def weight(self) -> float:
        """Of their loss: as the recipe says, or the model's own if they are trained."""
        if self.wanted is not None:
            return self.wanted
        parameters = (p for name in self.names for p in self.model.get_submodule(name).parameters())
        return self.own if any(parameter.requires_grad for parameter in parameters) else 0.0


def find_routers(model: Any, wanted: float | None) -> Routers | None:
    """None if there are none, or the model does not tell what they choose, or has no such loss of its own.

    Args:
        wanted: weight of their loss in the recipe.

    Raises:
        UserError: the recipe gives a weight to the loss of such a model.
    """
    names = [name for name in routers_of(model) if _is_recorded(model, name)]
    config = settings_of(model)
    own, chosen = getattr(config, "router_aux_loss_coef", None), getattr(config, "num_experts_per_tok", None)
    tells = "output_router_logits" in inspect.signature(model.forward).parameters
    if names and tells and own is not None and chosen is not None:
        return Routers(model, names, chosen, float(own), wanted)
    if wanted:
        raise UserError("train.router_loss: this model has no routers that tell what they choose; leave it out")
    return None


def _is_recorded(model: Any, name: str) -> bool:
    """Whether what a router chooses is among the model's outputs, if the model's class says of which it is."""
    module = model.get_submodule(name)
    listed = [(getattr(part, "_can_record_outputs", None) or {}).get("router_logits") for part in model.modules()]
    known = [one for entry in listed if entry is not None for one in (entry if isinstance(entry, list) else [entry])]
    kinds = tuple(kind for kind in (getattr(one, "target_class", one) for one in known) if isinstance(kind, type))
    return not kinds or isinstance(module, kinds)


def balance(logits: Iterable[torch.Tensor], chosen: int, real: torch.Tensor) -> torch.Tensor:
    """The load-balancing loss of Switch Transformers (Fedus et al. 2021, arXiv:2101.03961, equations 4 to 6) in its
    form for several experts per token: over the tokens of all layers, the number of experts times the sum over experts
    of how often each was chosen times its mean probability. It is `chosen` if all are used alike.

    Args:
        logits: of each layer, [tokens, experts].
        real: which tokens are not padding, bool [tokens]. Without any the loss is 0.
    """
    weight = real.unsqueeze(-1).float()
    picks: list[torch.Tensor] = []
    chances: list[torch.Tensor] = []
    for layer in logits:
        chance = layer.flatten(0, -2).float().softmax(-1)
        picked = torch.zeros_like(chance).scatter(-1, chance.topk(chosen, -1).indices, 1.0)
        picks.append((picked * weight).sum(0))
        chances.append((chance * weight).sum(0))
    tokens = weight.sum().clamp(min=1.0) * len(picks)
    used, mean = torch.stack(picks).sum(0) / tokens, torch.stack(chances).sum(0) / tokens
    return len(used) * (used * mean).sum()
