"""A decoder whose matrices are divided among ranks, by the plan that transformers has for its class.

All ranks compute with the same rows and add up what their parts of a layer give, so that no weight ever moves: a token
costs two small sums per layer. An adapter of low rank is merged into each rank's parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as td
from torch.distributed.tensor import DTensor, Replicate, Shard

from distft.checkpoint.state import Stored
from distft.model import adapters, attention, base_model, shared_weights
from distft.model.context import RunContext
from distft.model.outline import Indivisible, Outline
from distft.recipe.adapters import Lora, NoAdapter, Partial

DECODER = "AutoModelForCausalLM"
STYLES = {  # of transformers, for matrices by themselves: no experts, no matrices in one
    *("colwise", "colwise_gather_output", "colwise_rep", "rowwise", "rowwise_rep", "embedding_rowwise"),
    "replicated_with_grad_allreduce",
}
COPY = f".modules_to_save.{adapters.NAME}."  # in names of what is trained whole beside an adapter


@dataclass(frozen=True)
class Added:
    """What an adapter adds to a weight: `scaling` B A. The names are those of its parameters."""

    a: str
    b: str
    scaling: float


def check(context: RunContext, made: Outline, ranks: int) -> None:
    """Raises Indivisible if this model cannot be divided so among so many ranks: why."""
    adapter, base = context.recipe.adapter, _base(made.model)
    plan = getattr(base, "tp_plan", None)
    if context.model_spec.auto_class != DECODER or not plan:
        raise Indivisible("transformers has no plan for tensor parallelism for it")
    if other := sorted(set(plan.values()) - STYLES):
        raise Indivisible(f"its plan for tensor parallelism has parts that are not tried here ({', '.join(other)})")
    plain = isinstance(adapter, NoAdapter | Partial) or (isinstance(adapter, Lora) and not adapter.dora)
    if made.stored is not None and not plain:
        raise Indivisible("its adapter cannot be merged part by part")
    if (tied := shared_weights.tied_target(made.model)) is not None or shared_weights.untied_copies(made.model):
        raise Indivisible(f"an adapter is on {tied or 'a layer'} that shares its weight with another layer")
    settings = base.config.get_text_config()
    for name in ("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size"):
        if (getattr(settings, name, 0) or 0) % ranks:
            raise Indivisible(f"its {name} {getattr(settings, name)} cannot be divided by {ranks}")


def _base(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def load(context: RunContext, made: Outline) -> Any:
    """The model in its parts, on this rank's device. Collective over the default process group.

    Raises:
        Indivisible: transformers has divided it in a way that is not known here.
    """
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    recipe, spec = context.recipe, context.model_spec
    by_document = attention.takes_documents(context.run, context.starts)
    model: Any = getattr(transformers, spec.auto_class).from_pretrained(
        context.base,
        dtype=base_model.DTYPES[recipe.engine.dtype],
        attn_implementation=attention.offered(context.base, recipe, spec, by_document),
        trust_remote_code=recipe.model.trust_remote_code,
        tp_plan="auto",
        **spec.head(()),
    )
    if made.stored is not None:
        with torch.no_grad():
            fill(model, made, made.stored)
    return model.eval()


def fill(model: Any, made: Outline, stored: Stored) -> None:
    """Give the parts of the base the values that training has given them."""
    added = dict(additions(made.model))
    copies = {own_name(name): name for name in stored.shapes if ".lora_" not in name}
    for name, parameter in model.named_parameters():
        if name in copies:
            own, dim, low, high = part(parameter)
            own.copy_(_cut(stored, copies[name], tuple(parameter.shape), dim, low, high))
        elif name in added:
            own, dim, low, high = part(parameter)
            one = added[name]
            a, b = (stored.read(n, "master", 0, torch.Size(stored.shapes[n]).numel()) for n in (one.a, one.b))
            a, b = a.view(stored.shapes[one.a]).to(own.device), b.view(stored.shapes[one.b]).to(own.device)
            a, b = (a[:, low:high], b) if dim == 1 else (a, b[low:high])
            own.copy_(own.float() + one.scaling * (b @ a))


def additions(model: Any) -> Iterator[tuple[str, Added]]:
    """What is added to which weight of the base, by that weight's name."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and adapters.NAME in module.lora_A:
            a, b = (f"{name}.lora_{letter}.{adapters.NAME}.weight" for letter in "AB")
            yield f"{name.removeprefix(adapters.PREFIX)}.weight", Added(a, b, module.scaling[adapters.NAME])


def own_name(name: str) -> str:
    """The name that a trained weight has in the base."""
    return name.removeprefix(adapters.PREFIX).replace(COPY, ".").replace(".base_layer.", ".")


def part(parameter: Any) -> tuple[torch.Tensor, int, int, int]:
    """This rank's part of a weight, the dimension along which it is cut, and where: begin and end.

    Raises:
        Indivisible: it is cut in another way.
    """
    if not isinstance(parameter, DTensor):
        return parameter, 0, 0, parameter.shape[0]
    [placement], own = parameter.placements, parameter.to_local()
    if isinstance(placement, Replicate):
        return own, 0, 0, parameter.shape[0]
    dim = placement.dim % parameter.ndim if type(placement) is Shard else -1
    if dim not in (0, 1):
        raise Indivisible(f"transformers has cut a weight in a way that is not known here ({placement})")
    length = -(-parameter.shape[dim] // td.get_world_size())
    low = min(length * td.get_rank(), parameter.shape[dim])
    return own, dim, low, low + own.shape[dim]


def _cut(stored: Stored, name: str, shape: tuple[int, ...], dim: int, low: int, high: int) -> torch.Tensor:
    """Part of a trained weight; of one that is cut along its rows nothing else is read."""
    width = torch.Size(shape[1:]).numel()
    if dim == 0:
        return stored.read(name, "master", low * width, (high - low) * width).view(high - low, *shape[1:])
    return stored.read(name, "master", 0, torch.Size(shape).numel()).view(shape)[:, low:high]
