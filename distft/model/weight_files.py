"""TEMPORARY stand-in until main has it."""
from __future__ import annotations
from collections.abc import Collection
from pathlib import Path
from typing import Any
import torch
from safetensors import safe_open

class WeightFiles:
    def __init__(self, where: dict[str, tuple[Any, str]], missing: frozenset[str]) -> None:
        self._where, self.names, self.missing = where, where.keys(), missing

    @classmethod
    def of(cls, folder: Path, model: Any) -> "WeightFiles | None":
        from transformers.conversion_mapping import get_model_conversion_mapping
        keys: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, framework="pt", backend="pread")
            keys.update({key: file for key in file.keys()})
        where: dict[str, tuple[Any, str]] = {}
        missing = set()
        prefix = model.base_model_prefix
        by_id: dict[int, list[str]] = {}
        every = [*model.named_parameters(remove_duplicate=False), *[(n, b) for n, b in model.named_buffers(remove_duplicate=False) if n in model.state_dict()]]
        for name, p in every:
            by_id.setdefault(id(p), []).append(name)
        for names in by_id.values():
            found = [c for n in names for c in (n, n.removeprefix(prefix + "."), prefix + "." + n) if c in keys]
            for n in names:
                if found: where[n] = (keys[found[0]], found[0])
                else: missing.add(n)
        return cls(where, frozenset(missing))

    def shape(self, name: str) -> tuple[int, ...]:
        f, k = self._where[name]
        return tuple(f.get_slice(k).get_shape())

    def read_flat(self, name: str, offset: int, numel: int) -> torch.Tensor:
        f, k = self._where[name]
        return f.get_tensor(k).reshape(-1)[offset:offset+numel]
