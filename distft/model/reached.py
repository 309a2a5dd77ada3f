"""Whether training reaches the modules that a recipe names: some models keep a module that no forward pass uses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from distft.errors import UserError
from distft.model.adapters import PREFIX, listed
from distft.recipe.adapters import Adapter, Layers

_ADDED = (".modules_to_save.", ".lora_")  # what PEFT puts between the name of a module and that of a parameter


class Reached:
    """Watches which of the named modules get a gradient, from the moment it is made until `check`.

    T5 and BART have one matrix under four names: `shared`, which nothing calls, the `embed_tokens` of both stacks, and
    `lm_head`. PEFT makes a copy for the name that it is given, so that one of `shared` would never move.

    Args:
        model: with its adapter.
    """

    def __init__(self, model: torch.nn.Module, adapter: Adapter) -> None:
        self._model = model
        self._modules: dict[tuple[str, str], list[str]] = {}  # (key of the recipe, name in it): modules
        self._seen: set[str] = set()
        self._handles: list[RemovableHandle] = []
        if not isinstance(adapter, Layers):
            return
        targets = [] if adapter.targets == "all-linear" else listed(adapter.targets)
        for module, parameter in added(model):
            note = partial(self._note, module)
            self._handles.append(parameter.register_hook(note))  # type: ignore[no-untyped-call]
            for key, names in (("targets", targets), ("modules_to_save", adapter.modules_to_save)):
                for name in names:
                    if module == name or module.endswith(f".{name}"):
                        self._modules.setdefault((key, name), []).append(module)

    def _note(self, module: str, gradient: torch.Tensor) -> None:
        self._seen.add(module)

    def check(self) -> None:
        """After a backward pass. Raises UserError if it has not reached any module of one name."""
        for handle in self._handles:
            handle.remove()
        for (key, name), modules in self._modules.items():
            if not self._seen & set(modules):
                others = sharing(self._model, modules[0])
                instead = f"its weight is that of {', '.join(others)}: name those modules" if others else "leave it out"
                raise UserError(
                    f"adapter.{key}: no forward pass of this model uses '{name}', so it would never change; {instead}"
                )


def added(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """(name of a module of the base model, a parameter that is trained in its place or beside it)."""
    for name, parameter in model.named_parameters():
        between = next((mark for mark in _ADDED if mark in name), None)
        if between is not None and parameter.requires_grad:
            yield name.partition(between)[0].removeprefix(PREFIX), parameter


def sharing(model: torch.nn.Module, module: str) -> list[str]:
    """Names of the other modules that have a weight of this one."""
    own: Any = model.get_submodule(PREFIX + module)
    weights = {id(weight) for weight in own.parameters() if not weight.requires_grad}
    found = []
    for name, other in model.named_modules():
        if not name.startswith(PREFIX + module) and weights & {id(w) for w in other.parameters(recurse=False)}:
            found.append(name.removeprefix(PREFIX).removesuffix(".base_layer").removesuffix(".original_module"))
    return found
