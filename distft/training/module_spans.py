"""Spans of modules in a profile: forward passes of the model, of its attention, and of its head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch.profiler import record_function

from distft.run.profile import ATTENTION
from distft.training.timeline import HEAD, MODEL, REST
from distft.training.trace import LABEL


class ModuleSpans:
    """Hooks that mark spans, until `remove`. They return nothing, so what modules compute stays as it is.

    Attention is what a module of that name does itself: its linear layers, which are modules within it, are not. The
    head is what makes logits of hidden states (`get_output_embeddings`).

    Args:
        model: as it is called; also one that wraps others.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._hooks = ExitStack()
        self._mark(model, MODEL)
        for module in attentions(model):
            self._mark(module, ATTENTION)
            for child in module.children():
                if next(child.parameters(), None) is not None:
                    self._mark(child, REST)
        for module in heads(model):
            self._mark(module, HEAD)

    def remove(self) -> None:
        self._hooks.close()

    def _mark(self, module: torch.nn.Module, name: str) -> None:
        open_spans: list[record_function] = []

        def begin(module: torch.nn.Module, inputs: Any) -> None:
            span = record_function(LABEL + name)
            span.__enter__()  # type: ignore[no-untyped-call]
            open_spans.append(span)

        def end(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if open_spans:
                open_spans.pop().__exit__(None, None, None)

        self._hooks.callback(module.register_forward_pre_hook(begin).remove)
        # a forward pass that activation checkpointing does again ends by an exception where it has what it needs
        self._hooks.callback(module.register_forward_hook(end, always_call=True).remove)


def attentions(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The innermost modules that are called attention."""
    for module in model.modules():
        if _attends(module) and not any(_attends(one) for one in module.modules() if one is not module):
            yield module


def _attends(module: torch.nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def heads(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Of all models of transformers in it, each once."""
    found: dict[int, torch.nn.Module] = {}
    for module in model.modules():
        get: Any = getattr(type(module), "get_output_embeddings", None)
        head = get(module) if get is not None else None
        if isinstance(head, torch.nn.Module):
            found[id(head)] = head
    return list(found.values())
