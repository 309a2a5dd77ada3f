"""Weights that ranks hold together: each a stretch of every layer, gathered while the layer computes, the next ahead.

For use without gradients. A module computes with its whole weights, so that what comes out is bit for bit what one
process computes. The ranks need not do the same: each computes with rows of its own, and calls its modules as often as
it likes. Before a gather they agree on which layer it is, the first of those that anybody waits for, and so ranks that
went apart come into step again. One that has nothing to compute takes part by `attend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as td
from torch import nn

Read = Callable[[str, int, int], torch.Tensor]
"""Elements [offset, offset + numel) of the flattened weight with this name."""

ALIGNED = 64  # elements: a weight begins there in its flat tensor, as memory of its own would
SMALL = 200  # what is outside of layers, and no larger than this part of the model, each rank holds whole
NOTHING = 1 << 40  # what a rank waits for that waits for nothing


@dataclass
class Unit:
    """Weights that are gathered at once.

    Attributes:
        names: of the weights.
        places: where each begins in the flat tensor of all.
        shard: this rank's stretch of it.
        nothing: of no elements, what a weight is between calls.
        stays: until the outermost call is over: what is outside of layers may be used by any module.
        users: calls under way that compute with it.
        whole: the flat tensor while it is here, or on its way as long as there is `work`.
    """

    names: list[str]
    weights: list[nn.Parameter]
    shapes: list[torch.Size]
    places: list[int]
    shard: torch.Tensor
    nothing: torch.Tensor
    stays: bool
    users: int = 0
    whole: torch.Tensor | None = None
    work: Any = None


@dataclass
class Gathered:
    """A model whose weights are gathered as its modules are called.

    Attributes:
        units: in the order in which a model computes with them.
        kept: bytes of weights that this rank holds between calls.
        moved: bytes that this rank has gathered so far.
    """

    units: list[Unit]
    kept: int
    moved: int = 0
    _depth: int = 0
    _spare: list[torch.Tensor] = field(default_factory=list)

    def attend(self) -> None:
        """Take part in what the others gather, until all of them attend."""
        while (index := agreed(NOTHING)) != NOTHING:
            self._skip(index)

    def enter(self, indices: list[int], *_: Any) -> None:
        self._depth += 1
        for index in indices:
            unit = self.units[index]
            if unit.users == 0:
                with torch.inference_mode(False):  # what is made in that mode cannot be the data of a parameter
                    self._have(index)
                    if not unit.stays:
                        self._look_ahead(index + 1)
            unit.users += 1

    def leave(self, indices: list[int], *_: Any) -> None:
        self._depth -= 1
        for index in indices:
            unit = self.units[index]
            unit.users -= 1
            if unit.users == 0 and not unit.stays:
                self._free(unit)
        if self._depth == 0:
            for unit in self.units:
                if unit.stays and unit.whole is not None:
                    self._free(unit)

    def _have(self, index: int) -> None:
        """Wait until a unit is here, and gather meanwhile what others wait for."""
        unit = self.units[index]
        while unit.whole is None:
            if (found := agreed(index)) == index:
                self._begin(unit)
            else:
                self._skip(found)
        if unit.work is not None:
            unit.work.wait()
            unit.work = None
            for weight, shape, place in zip(unit.weights, unit.shapes, unit.places, strict=True):
                weight.data = unit.whole.narrow(0, place, shape.numel()).view(shape)

    def _look_ahead(self, index: int) -> None:
        """Begin to gather the next layer, unless the others wait for another one."""
        if index >= len(self.units) or self.units[index].stays or self.units[index].whole is not None:
            return
        if (found := agreed(index)) == index:
            self._begin(self.units[index])
        else:
            self._skip(found)

    def _begin(self, unit: Unit) -> None:
        unit.whole = self._buffer(unit)
        self.moved += unit.whole.nbytes
        # as bytes: gloo does not know every dtype
        whole, shard = unit.whole.view(torch.uint8), unit.shard.view(torch.uint8)
        unit.work = td.all_gather_into_tensor(whole, shard, async_op=True)

    def _skip(self, index: int) -> None:
        """Take part in a gather of what is not needed here, or is here already."""
        unit = self.units[index]
        aside = Unit([], [], [], [], unit.shard, unit.nothing, stays=False)
        self._begin(aside)
        aside.work.wait()
        self._free(aside)

    def _buffer(self, unit: Unit) -> torch.Tensor:
        """Memory that is new is slow on a CPU, so that of a layer serves the next ones."""
        size = unit.shard.numel() * td.get_world_size()
        for index, one in enumerate(self._spare):
            if one.numel() == size and one.dtype == unit.shard.dtype:
                return self._spare.pop(index)
        return torch.empty(size, dtype=unit.shard.dtype, device=unit.shard.device)

    def _free(self, unit: Unit) -> None:
        assert unit.whole is not None
        for weight in unit.weights:
            weight.data = unit.nothing  # whoever computes with it now gets an error
        if not unit.stays:
            self._spare = [*self._spare, unit.whole][-2:]
        unit.whole = None


def agreed(index: int) -> int:
    """The smallest of the numbers of all ranks. Collective."""
    number = torch.tensor([index])
    td.all_reduce(number, td.ReduceOp.MIN)  # on the CPU: no device is waited for
    return int(number)


def shard(model: nn.Module, read: Read, device: torch.device) -> Gathered:
    """Give a model its weights: of layers, and of what is large besides, this rank's stretches. Collective.

    Args:
        model: its parameters are on "meta"; its buffers move to `device`.
        read: see `Read`; is asked for what this rank will hold.
    """
    names: dict[nn.Parameter, str] = {weight: name for name, weight in model.named_parameters()}
    small = sum(weight.numel() for weight in names) // SMALL
    layers = layers_of(model)
    made: dict[nn.Parameter, nn.Parameter] = {}
    where: dict[nn.Parameter, int] = {}
    units: list[Unit] = []
    found: dict[tuple[str, torch.dtype], list[nn.Parameter]] = {}
    kept = 0
    for weight, name in names.items():
        layer = next((one for one in prefixes(name) if one in layers), None)
        if layer is None and weight.numel() <= small:
            whole = read(name, 0, weight.numel()).to(weight.dtype).view(weight.shape)
            made[weight] = nn.Parameter(whole.to(device), requires_grad=False)
            kept += whole.nbytes
            continue
        found.setdefault((name if layer is None else layer, weight.dtype), []).append(weight)
    for (name, _), weights in found.items():
        unit = read_unit([names[one] for one in weights], weights, read, device, stays=name not in layers)
        made.update(zip(weights, unit.weights, strict=True))
        where.update(dict.fromkeys(unit.weights, len(units)))
        kept += unit.shard.nbytes
        units.append(unit)
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = made[parameter]
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)
    gathered = Gathered(units, kept)
    hook(model, layers, where, gathered)
    return gathered


def read_unit(names: list[str], weights: list[nn.Parameter], read: Read, device: torch.device, stays: bool) -> Unit:
    """A unit with this rank's stretch, and new parameters without values in the place of those on "meta"."""
    places, end = [], 0
    for weight in weights:
        places.append(end)
        end += -(-weight.numel() // ALIGNED) * ALIGNED
    length = -(-end // (td.get_world_size() * ALIGNED)) * ALIGNED
    begin = length * td.get_rank()
    stretch = torch.zeros(length, dtype=weights[0].dtype)
    for name, weight, place in zip(names, weights, places, strict=True):
        low, high = max(begin, place), min(begin + length, place + weight.numel())
        if low < high:
            stretch[low - begin : high - begin].copy_(read(name, low - place, high - low))
    shapes = [weight.shape for weight in weights]
    stretch = stretch.to(device)
    nothing = stretch.new_empty(0)
    empty = [nn.Parameter(nothing, requires_grad=False) for _ in weights]
    return Unit(names, empty, shapes, places, stretch, nothing, stays)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The members of the outermost lists of modules, by name: layers, in the models of transformers."""

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for key, child in module.named_children():
            inner = f"{name}.{key}" if name else key
            if isinstance(module, nn.ModuleList):
                yield inner, child
            else:
                yield from walk(inner, child)

    return dict(walk("", model))


def prefixes(name: str) -> Iterator[str]:
    """Of a parameter's name, those of the modules around it, outermost first."""
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def hook(model: nn.Module, layers: dict[str, nn.Module], where: dict[nn.Parameter, int], gathered: Gathered) -> None:
    """Have each module call for the units of its own weights, and a layer for all that is in it."""
    for name, module in model.named_modules():
        if next(module.parameters(), None) is None:
            continue
        weights = list(module.parameters(recurse=name in layers))
        for child in module.children():
            if isinstance(child, nn.ParameterDict | nn.ParameterList):  # is never called
                weights += child.parameters()
        indices = sorted({where[weight] for weight in weights if weight in where})
        module.register_forward_pre_hook(partial(gathered.enter, indices))
        module.register_forward_hook(partial(gathered.leave, indices), always_call=True)
