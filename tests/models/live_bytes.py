"""Counts the bytes of tensors that are alive during a step, on tensors that have shapes and no memory."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Notes when storages come and go. Those of weights, and of gradients of weights, are told apart.

    Attributes:
        live: bytes alive now, without weights.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._known: dict[int, Any] = {}
        self._events: list[tuple[int, int]] = []  # (storage, bytes that come or go)
        self._gradients: set[int] = set()
        self._moments: dict[str, int] = {}
        self._number, self._begun = 0, sys.maxsize
        for tensor in [*model.parameters(), *model.buffers()]:
            self._known[tensor.untyped_storage()._cdata] = (tensor.untyped_storage(), -1)
        tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
        self._tables = {tuple(sorted(table.shape)) for table in tables if table.requires_grad}
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._note_gradient)
                parameter.register_post_accumulate_grad_hook(_forget)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        # into tensors that have memory autograd adds in place, but not into fake ones
        in_place = func is torch.ops.aten.index_put.default
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor, empty=in_place)
                if tuple(sorted(tensor.shape)) in self._tables:  # a part of a tied one's gradient comes from the head
                    self._note_gradient(tensor)
        return made

    def note(self, tensor: torch.Tensor, *, empty: bool = False) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        number, size, key = self._number, 0 if empty else storage.nbytes(), storage._cdata
        self._number += 1

        def gone() -> None:
            del self._known[key]
            self._events.append((number, -size))

        weakref.finalize(storage, gone)
        self._known[key] = (None, number)
        self._events.append((number, size))

    def _note_gradient(self, gradient: torch.Tensor) -> None:
        found = self._known.get(gradient.untyped_storage()._cdata)
        if found is not None and found[1] >= self._begun:  # one that is made in forward waits for its weight
            self._gradients.add(found[1])

    def mark(self, name: str) -> None:
        """What follows is called so."""
        if name == "backward":
            self._begun = self._number
        self._moments[name] = len(self._events)

    def _curve(self) -> Iterator[int]:
        live = 0
        for number, size in self._events:
            if number not in self._gradients:
                live += size
            yield live

    def peaks(self) -> dict[str, tuple[int, int]]:
        """(most bytes, bytes at its end) of each moment."""
        curve = [0, *self._curve()]
        begins = [*self._moments.values(), len(self._events)]
        return {
            name: (max(curve[begin : end + 1]), curve[end])
            for name, begin, end in zip(self._moments, begins, begins[1:], strict=False)
        }


def _forget(parameter: torch.Tensor) -> None:
    parameter.grad = None


@contextmanager
def fake(device: str = "cpu") -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        yield


def counted(model: torch.nn.Module, loss: Callable[[], torch.Tensor], batch: Any) -> dict[str, tuple[int, int]]:
    """Of a forward and backward pass: most bytes, and bytes at the end, of "forward" and "backward".

    Args:
        batch: an object whose tensors are alive all the time.
    """
    counter = LiveBytes(model)
    for tensor in vars(batch).values():
        if isinstance(tensor, torch.Tensor):
            counter.note(tensor)
    with counter:
        counter.mark("forward")
        value = loss()
        counter.mark("backward")
        value.backward()
    return counter.peaks()


def without_memory(model: torch.nn.Module) -> torch.nn.Module:
    """A model on the meta device, moved to a CPU that does not exist; to be called within `fake`."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, own in module._parameters.items():
            if own is not None:
                if id(own) not in made:
                    made[id(own)] = torch.nn.Parameter(torch.empty(own.shape, dtype=own.dtype), own.requires_grad)
                module._parameters[name] = made[id(own)]  # type: ignore[assignment]
        for name, held in module._buffers.items():
            if held is not None:
                module._buffers[name] = torch.empty(held.shape, dtype=held.dtype)
    return model
