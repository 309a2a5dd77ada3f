"""The copy that training does not touch, and what came back from the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distft.checkpoint import store
from distft.checkpoint.writer import HostMemory
from distft.errors import RunFailed


def test_copies_stay_as_they_were_while_training_goes_on() -> None:
    live = {"a": torch.arange(4.0), "b": torch.ones(3, dtype=torch.bfloat16)}
    copied = dict(HostMemory().copy(live.items()))
    for tensor in live.values():
        tensor.zero_()
    assert copied["a"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert copied["b"].tolist() == [1.0, 1.0, 1.0]
    assert copied["b"].dtype == torch.bfloat16


def test_memory_is_used_again() -> None:
    memory = HostMemory()
    [(_, first)] = memory.copy([("a", torch.ones(1000))])
    [(_, second)] = memory.copy([("a", torch.full((1000,), 2.0))])
    assert first.data_ptr() == second.data_ptr()
    assert second[0] == 2.0


def test_bytes_that_come_back_changed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.safetensors"
    digest = store.write_tensors(path, [("a", torch.ones(8))])
    store.read_back(path, digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFailed, match="came back from the file system with other bytes"):
        store.read_back(path, digest)
