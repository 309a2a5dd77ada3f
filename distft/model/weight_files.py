"""The weights of a model folder, read stretch by stretch, under the names that a model of transformers has for them.

transformers reads a model whole into each process that loads it. Where many processes share a model, each reads here
what it is to hold.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
COMPARED = 1 << 24  # elements at once
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: flat, from byte `begin` of a file on."""

    file: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


class WeightFiles:
    """The weights of a folder, for one model.

    Attributes:
        places: where each parameter and each buffer of the model's state dict lies; tied ones under all their names.
        missing: those that the files lack: a head made anew, or what transformers computes (Marian's positions).
        transforms: how transformers has renamed what it read, which it reverses when it saves (`_weight_conversions`).
    """

    def __init__(self, places: Mapping[str, Place], missing: Collection[str], transforms: list[Any]) -> None:
        self.places, self.missing, self.transforms = dict(places), frozenset(missing), transforms

    @classmethod
    def of(cls, folder: Path, model: Any, replaces: Callable[[str], bool] = lambda name: False) -> WeightFiles | None:
        """None where files and names do not correspond one to one: other files than safetensors, weights that are
        quantised, or that transformers fuses or divides, or that have other shapes than in the model.

        Args:
            model: one of transformers' models; only its names and shapes are looked at, so it may be on "meta".
            replaces: whether what is stored under a name, in another shape than the model's, counts as missing.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        stored = _stored(folder)
        if stored is None or getattr(model.config, "quantization_config", None) is not None:
            return None
        tensors = model.state_dict(keep_vars=True)
        transforms = get_model_conversion_mapping(model)
        renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
        converters = [one for one in transforms if isinstance(one, WeightConverter)]
        prefix, places = model.base_model_prefix, dict[str, Place]()
        for key, place in sorted(stored.items()):
            name, fused = rename_source_key(key, renamings, converters, prefix, tensors)
            if name not in tensors and key in tensors:
                name, fused = rename_source_key(key, [], [], prefix, tensors)
            if name not in tensors and fused is None:
                continue  # transformers leaves it out too, such as the head of another task
            fits = fused is None and place.shape == _shape_of(tensors[name])
            if name in places or not (fits or (fused is None and replaces(name))):
                return None
            if fits:
                places[name] = place
        if not _tie(tensors, places):
            return None
        return cls(places, tensors.keys() - places.keys(), [one for one in transforms if one.was_used()])

    @cached_property
    def names(self) -> frozenset[str]:
        return frozenset(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """As stored."""
        return self.places[name].dtype

    def read(self, name: str) -> torch.Tensor:
        """A tensor, whole, in its shape and as it is stored."""
        place = self.places[name]
        return _read(place, 0, place.numel).view(place.shape)

    def read_flat(self, name: str, offset: int, numel: int) -> torch.Tensor:
        """Elements [offset, offset + numel) of a flattened tensor: [numel], as they are stored."""
        return _read(self.places[name], offset, numel)


def _shape_of(tensor: Any) -> tuple[int, ...]:
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _stored(folder: Path) -> dict[str, Place] | None:
    """Every tensor of the folder's files; None if they are no safetensors, or cannot be read as such."""
    try:
        if (folder / INDEX).exists() and not (folder / SINGLE).exists():
            files = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        else:
            files = [SINGLE]
        return {key: place for file in files for key, place in _places(folder / file)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # transformers says what is wrong with them


def _places(path: Path) -> Iterator[tuple[str, Place]]:
    """From the header of a file (https://huggingface.co/docs/safetensors)."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        length = os.fstat(file.fileno()).st_size
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        place = Place(path, 8 + size + entry["data_offsets"][0], _DTYPES[entry["dtype"]], tuple(entry["shape"]))
        if place.begin + place.numel * place.dtype.itemsize > length:
            raise ValueError(f"{path} is shorter than its header says")
        yield key, place


def _tie(tensors: Mapping[str, Any], places: dict[str, Place]) -> bool:
    """Give all names of a tied tensor the place that one of them has. False where two differ: transformers unties
    them."""
    groups: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        groups[id(tensor)].append(name)
    for names in groups.values():
        held = [places[name] for name in names if name in places]
        if any(not _equal(held[0], other) for other in held[1:]):
            return False
        places.update({name: held[0] for name in names if held})
    return True


def _equal(one: Place, other: Place) -> bool:
    if one.dtype != other.dtype:
        return False
    stretches = ((begin, min(COMPARED, one.numel - begin)) for begin in range(0, one.numel, COMPARED))
    return all(torch.equal(_read(one, *stretch), _read(other, *stretch)) for stretch in stretches)


def _read(place: Place, offset: int, numel: int) -> torch.Tensor:
    """[numel] from element `offset` on. Not memory-mapped: pages of a mapping stay with the process that read them."""
    if offset < 0 or offset + numel > place.numel:
        raise IndexError(f"elements {offset} to {offset + numel} of {place.numel}")
    result = torch.empty(numel, dtype=place.dtype)
    array: npt.NDArray[np.uint8] = result.view(torch.uint8).numpy()
    room = array.data
    at = place.begin + offset * place.dtype.itemsize
    with open(place.file, "rb", buffering=0) as file:
        while room:
            got = os.preadv(file.fileno(), [room], at)
            if got == 0:
                raise OSError(f"{place.file} has become shorter while it was read")
            room, at = room[got:], at + got
    return result
