"""The copy that training does not touch, and what came back from the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distft.checkpoint import store
from distft.checkpoint.host_memory import HostMemory
from distft.checkpoint.writer import finite
from distft.errors import RunFailed


def test_copies_stay_as_they_were_while_training_goes_on() -> None:
    live = {"a": torch.arange(4.0), "b": torch.ones(3, requires_grad=True), "c": torch.ones(0)}
    copied = HostMemory().copy(list(live.items()))
    with torch.no_grad():
        for tensor in live.values():
            tensor.zero_()
    assert [(name, tensor.tolist()) for name, tensor in copied.tensors] == [
        ("a", [0.0, 1.0, 2.0, 3.0]),
        ("b", [1.0, 1.0, 1.0]),
        ("c", []),
    ]
    assert copied.whole.tolist() == [0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0]
    assert not copied.whole.requires_grad


def test_memory_is_used_again() -> None:
    memory = HostMemory()
    first = memory.copy([("a", torch.ones(1000))]).whole
    second = memory.copy([("a", torch.full((999,), 2.0))]).whole
    assert first.data_ptr() == second.data_ptr()
    assert second.tolist() == [2.0] * 999


def test_memory_grows_where_more_is_to_be_copied() -> None:
    memory, live = HostMemory(), [("a", torch.ones(1001)), ("b", torch.ones(3))]
    memory.copy(live)
    more = memory.copy([*live, ("c", torch.ones(2000))])
    assert [bool((held == 1).all()) for _, held in more.tensors] == [True] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_seen(value: float) -> None:
    assert finite(torch.ones(5))
    assert finite(torch.ones(0))
    assert not finite(torch.tensor([1.0, value, -1.0]))


def test_what_lies_side_by_side_is_written_at_once_to_the_same_bytes(tmp_path: Path) -> None:
    parts, others = (
        [("a", torch.arange(5.0)), ("b", torch.ones(3))],
        [("c", torch.tensor([7])), ("d", torch.ones(2, 2))],
    )
    copied = HostMemory().copy(parts)
    store.write_tensors(tmp_path / "x", copied.tensors + others, copied.whole)
    store.write_tensors(tmp_path / "y", parts + others)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_bytes_that_come_back_changed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.safetensors"
    digest = store.write_tensors(path, [("a", torch.ones(8))])
    store.read_back(path, digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFailed, match="was read back with other bytes"):
        store.read_back(path, digest)
