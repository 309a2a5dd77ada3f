"""Flat pairs: sources in one row and their targets in another, for encoder-decoders that are told where each begins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from distft.tasks.shared.boundaries import Boundaries
from distft.tasks.shared.flat_rows import FlatRow
from distft.tasks.shared.padding import row_width

_PAIR = "flat_pair"  # the argument of a model's forward by which its encoder and its decoder learn of their rows

Given: TypeAlias = tuple[Any, ...]
Named: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class FlatPair:
    """B sources and their targets, both in the same order; filler at the end of the one looks at that of the other."""

    read: FlatRow
    written: FlatRow

    @classmethod
    def of(
        cls, read: Sequence[int], written: Sequence[int], longest: tuple[int, int], on_gpu: bool | None = None
    ) -> Self:
        """Sources and targets of these sizes, which are padded to `longest`. With those of one size side by side."""
        order = np.lexsort((written, read))
        totals = [sum(read), sum(written)]
        widths = [row_width(total, None, on_gpu) for total in totals]
        if widths != totals:  # filler looks at filler
            widths = [row_width(total + 1, None, on_gpu) for total in totals]
        rows = (FlatRow.of(*one, order) for one in zip((read, written), longest, widths, strict=True))
        return cls(*rows)

    def to(self, device: torch.device) -> FlatPair:
        return FlatPair(self.read.to(device), self.written.to(device))

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a model's forward, if it `can_be_given_pairs`. A mask of nothing is taken as it is by all layers, where
        none would be made into one of all pairs of tokens."""
        nothing = torch.empty(0, 0, 0, 0, dtype=torch.bool, device=self.read.places.device)
        return {_PAIR: self, "attention_mask": nothing, "decoder_attention_mask": nothing}


def can_be_given_pairs(model: Any) -> bool:
    """Whether an encoder-decoder of transformers, with its adapter or without, hands on what it is told. Its two halves
    are told by hooks: attention gets their sizes, and what counts positions the row as it would be padded. Attention
    that would make scores by distance for the whole row is not."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    halves = [whole.get_encoder(), whole.get_decoder()]
    if whole in halves or halves[0] is halves[1]:
        return False
    biased = [inspect.signature(module.forward).parameters for module in _with_bias(whole)]
    if not all(_takes_more(one) for one in (whole, *halves)) or any("position_bias" not in taken for taken in biased):
        return False
    for half, told in zip(halves, (_reads, _writes), strict=True):
        if not any(isinstance(getattr(hook, "__self__", None), _Half) for hook in half._forward_pre_hooks.values()):
            _Half(half, told)
    return True


def _takes_more(module: nn.Module) -> bool:
    taken = inspect.signature(module.forward).parameters.values()
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken)


def _reads(pair: FlatPair) -> tuple[FlatRow, Mapping[str, Any]]:
    return pair.read, pair.read.boundaries.arguments


def _writes(pair: FlatPair) -> tuple[FlatRow, Mapping[str, Any]]:
    sources: Boundaries = pair.read.boundaries
    keys = {"cu_seq_lens_k": sources.begins, "max_length_k": max(sources.sizes), "source_sizes": sources.sizes}
    return pair.written, {**pair.written.boundaries.arguments, **keys}


class _Half:
    """The encoder or the decoder of a model, and the row that it is given in a forward pass."""

    def __init__(self, half: nn.Module, told: Callable[[FlatPair], tuple[FlatRow, Mapping[str, Any]]]) -> None:
        self._told, self._row = told, None
        half.register_forward_pre_hook(self._begin, with_kwargs=True)
        half.register_forward_hook(self._end, always_call=True)
        for module, taken in _counting(half):
            if "position_ids" in taken:
                module.register_forward_pre_hook(self._positions, with_kwargs=True)
            else:
                module.register_forward_pre_hook(self._lay_out)
                module.register_forward_hook(self._flatten)
        for module in _with_bias(half):
            module.register_forward_pre_hook(_bias, with_kwargs=True)

    _row: FlatRow | None

    def _begin(self, module: nn.Module, given: Given, named: Named) -> tuple[Given, Named] | None:
        pair: FlatPair | None = named.get(_PAIR)
        if pair is None:
            return None
        self._row, told = self._told(pair)
        return given, {**{name: value for name, value in named.items() if name != _PAIR}, **told}

    def _end(self, module: nn.Module, given: Given, output: Any) -> None:
        self._row = None

    def _positions(self, module: nn.Module, given: Given, named: Named) -> tuple[Given, Named] | None:
        """[T], as transformers' decoders hand them over."""
        row = self._row
        if row is None:
            return None
        positions = row.places % row.shape[1]
        return given, {**named, "position_ids": _filled(positions, row)}

    def _lay_out(self, module: nn.Module, given: Given) -> Given | None:
        """Tokens as they would be padded, from which some count positions."""
        row, ids = self._row, given[0] if given else None
        if row is None or not isinstance(ids, torch.Tensor) or ids.dim() != 2:
            return None
        return row.laid_out(ids), *given[1:]

    def _flatten(self, module: nn.Module, given: Given, output: torch.Tensor) -> torch.Tensor | None:
        row = self._row
        if row is None or output.shape[:2] != row.shape:
            return None
        return _filled(output.flatten(0, 1)[row.places], row).unsqueeze(0)


def _counting(half: nn.Module) -> Iterator[tuple[nn.Module, Mapping[str, Any]]]:
    """The parts that count positions for themselves, as those of fairseq's models, with the arguments they take."""
    for module in half.modules():
        taken = inspect.signature(module.forward).parameters
        if "past_key_values_length" in taken:
            yield module, taken


def _with_bias(model: nn.Module) -> list[nn.Module]:
    """Attention that adds to its scores by distance, as T5's."""
    return [module for module in model.modules() if callable(getattr(module, "compute_bias", None))]


def _filled(values: torch.Tensor, row: FlatRow) -> torch.Tensor:
    """[width, ...] of [tokens, ...]."""
    missing = sum(row.boundaries.sizes) - len(values)
    return functional.pad(values, (0, 0) * (values.dim() - 1) + (0, missing))


def _bias(module: Any, given: Given, named: Named) -> tuple[Given, Named] | None:
    """A hook before attention with scores by distance: they are made for the longest document, and not for the row.
    Where a source is looked at there are none, for which one zero stands."""
    sizes: Sequence[int] | None = named.get("document_sizes")
    if sizes is None or named.get("position_bias") is not None:
        return None
    if getattr(module, "has_relative_attention_bias", False):
        bias = module.compute_bias(max(sizes), max(sizes))
    else:
        bias = given[0].new_zeros(1, 1, 1, 1)
    return given, {**named, "position_bias": bias}
