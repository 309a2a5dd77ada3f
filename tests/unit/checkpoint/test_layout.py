"""Layouts of files, as the library `safetensors` writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from distft.checkpoint.layout import ORDER, lay_out


def test_a_file_is_laid_out_as_the_library_does(tmp_path: Path) -> None:
    tensors = {
        f"{name}{index}": torch.ones(3, index + 1).to(kind) for name in 'bä"A' for index, kind in enumerate(ORDER)
    }
    tensors["scalar"] = torch.tensor(7.0)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    layout = lay_out("x.safetensors", {name: tensor.to("meta") for name, tensor in tensors.items()})
    made = layout.header
    for entry in layout.entries:
        assert entry.begin == len(made)
        made += tensors[entry.name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert entry.end == len(made)
    assert made == (tmp_path / "x.safetensors").read_bytes()
    assert layout.bytes == len(made)
