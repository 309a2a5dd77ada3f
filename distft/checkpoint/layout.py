"""The layout of safetensors files, as the library of that name writes them, before there are any tensors to write."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

ORDER = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The types that models have, in the order in which the library writes them; within one by name."""


@dataclass(frozen=True)
class Entry:
    """One tensor: bytes [begin, end) of the file."""

    name: str
    begin: int
    end: int


@dataclass(frozen=True)
class Layout:
    """One file: its header, and the tensors behind it without gaps."""

    file: str
    header: bytes
    entries: Sequence[Entry]

    @property
    def bytes(self) -> int:
        return self.entries[-1].end if self.entries else len(self.header)


def lay_out(file: str, tensors: Mapping[str, torch.Tensor]) -> Layout:
    """How tensors of these shapes and types lie in a file that says that PyTorch has written it.

    Args:
        tensors: on any device, "meta" included: their values are not looked at.

    Raises:
        KeyError: one has a type that is not in `ORDER`.
    """
    ranks = {dtype: rank for rank, dtype in enumerate(ORDER)}
    names = sorted(tensors, key=lambda name: (ranks[tensors[name].dtype], name.encode()))
    about: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, end = [], 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        about[name] = {"dtype": ORDER[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        places.append((name, begin, end))
    text = json.dumps(about, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return Layout(file, header, [Entry(name, len(header) + begin, len(header) + end) for name, begin, end in places])
