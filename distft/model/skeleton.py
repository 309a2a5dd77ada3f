"""A model put together without its weights, which are then made one after the other, each as far as it is needed.

transformers reads all weights of a model at once. Here each rank reads of a weight only the stretch that it will hold
(`engine.shards`), and nothing of one that a checkpoint will give its value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distft.engine.shards import Fill, Shards
from distft.model.weight_files import WeightFiles
from distft.process import pulse, stop_signals


@dataclass(frozen=True)
class Places:
    """Where weights go, and whence they come.

    Attributes:
        shards: how ranks share them out; None: each is whole, in host memory.
        restored: names of those that are not read: a checkpoint gives them their values before they are used.
        nowhere: nothing is read, and the model stays on the device "meta".
    """

    shards: Shards | None = None
    restored: Collection[str] = frozenset()
    nowhere: bool = False

    @property
    def matter(self) -> bool:
        """Whether there is anything that transformers would not do by itself."""
        return self.shards is not None or bool(self.restored)

    def below(self, prefix: str) -> Places:
        """Of a model that becomes a part of another one, with this before its names."""
        restored = {name.removeprefix(prefix) for name in self.restored if name.startswith(prefix)}
        return replace(self, restored=restored)


WHOLE, NOWHERE = Places(), Places(nowhere=True)


def build(
    folder: Path,
    make: Callable[[], Any],
    dtype: torch.dtype,
    places: Places,
    replaces: Callable[[Any, str], bool],
) -> tuple[Any, frozenset[str]] | None:
    """The model of a folder in evaluation mode, and the names of parameters that its files lack: these are still to be
    given values. None if this cannot be done: the files hold other things than the model, or its code comes with it and
    may compute as it is put together.

    Args:
        make: puts it together, without weights where tensors are made on the device "meta".
        dtype: of its weights.
        replaces: whether a parameter of the model counts as lacking if it is stored in another shape.
    """
    with torch.device("meta"):
        model = make()
    files = None if model.is_remote_code() else WeightFiles.of(folder, model, partial(replaces, model))
    if files is None or (places.shards is None and model._keep_in_fp32_modules_strict and dtype != torch.float32):
        return None
    missing = frozenset(name for name, _ in model.named_parameters()) & files.missing
    computed = _computed(model, missing)
    _compute(model, files, computed, places.shards.device if places.shards is not None else torch.device("cpu"))
    _make_parameters(model, files, dtype, places)
    if files.transforms:
        model._weight_conversions = files.transforms
    _find_generation(model, folder)
    return model.eval(), missing - computed


def _computed(model: Any, missing: frozenset[str]) -> frozenset[str]:
    """Names of parameters that no file of such a model holds, since it computes them: Marian's positions."""
    quiet = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_missing or ()]
    return frozenset(name for name in missing if any(pattern.search(name) for pattern in quiet))


def _compute(model: Any, files: WeightFiles, computed: frozenset[str], device: torch.device) -> None:
    """Read the buffers that are in the files, and have the model compute the others, and these parameters. It does so
    while all are whole, if only in shape."""
    for name, module, key, parameter in list(_parameters(model)):
        if name in computed:
            value: Any = torch.nn.Parameter(torch.empty_like(parameter, device="cpu"), parameter.requires_grad)
            module.register_parameter(key, value)
        else:
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers leaves it alone then
    for prefix, module in model.named_modules():
        for key, old in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            name = f"{prefix}.{key}" if prefix else key
            value = torch.empty_like(old, device=device)
            if name in files.names and key not in module._non_persistent_buffers_set:
                value.copy_(files.read(name))
                value._is_hf_initialized = True
            setattr(module, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same on all ranks, if anything is drawn
        model.initialize_weights()


def _make_parameters(model: Any, files: WeightFiles, dtype: torch.dtype, places: Places) -> None:
    """Put parameters into the places of those that have a shape only; tied ones stay one."""
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    for name, module, key, old in _parameters(model):
        if old not in made:
            stop_signals.check()
            pulse.moving()
            fill = _filler(files, name, old, places)
            # As transformers does it: in shards what is fixed stays fixed (Marian's positions), and whole it does not.
            if places.shards is not None:
                kind = dtype if old.is_floating_point() else old.dtype  # ZeRO-3 takes weights of one dtype only
                made[old] = places.shards.parameter(old.shape, kind, fill)
                made[old].requires_grad_(old.requires_grad)
            else:
                value = torch.empty(old.shape, dtype=old.dtype, device="cpu")
                fill(value.view(-1), 0)
                made[old] = torch.nn.Parameter(value, requires_grad=old.is_floating_point())
        module.register_parameter(key, made[old])


def _parameters(model: Any) -> Iterator[tuple[str, Any, str, torch.nn.Parameter]]:
    """(name, its module, its name there, the parameter itself), tied ones under each of their names."""
    for prefix, module in model.named_modules():
        for key, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            yield f"{prefix}.{key}" if prefix else key, module, key, parameter


def _filler(files: WeightFiles, name: str, computed: torch.nn.Parameter, places: Places) -> Fill:
    """`computed`: the parameter before; it has values only if it is not on "meta"."""

    def fill(stretch: torch.Tensor, offset: int) -> None:
        if not computed.is_meta:
            stretch.copy_(computed.detach().view(-1).narrow(0, offset, stretch.numel()))
        elif name in files.names and name not in places.restored:
            stretch.copy_(files.read_flat(name, offset, stretch.numel()))
        else:
            stretch.fill_(math.nan)  # if nothing gave it a value after all, nobody could overlook it

    return fill


def _find_generation(model: Any, folder: Path) -> None:
    """How the model's folder says that it generates."""
    from transformers import GenerationConfig

    if not model.can_generate():
        return
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder)
    except OSError:  # it is older than such files
        model.generation_config = GenerationConfig.from_pretrained(
            folder, config_file_name="config.json", _from_model_config=True
        )
