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
    live = {
        "a": torch.arange(4.0),
        "b": torch.ones(3, dtype=torch.bfloat16),
        "c": torch.tensor(7),
        "d": torch.ones(0, 2),
    }
    copied = dict(HostMemory().copy(list(live.items())))
    for tensor in live.values():
        tensor.zero_()
    assert copied["a"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert copied["b"].tolist() == [1.0, 1.0, 1.0]
    assert copied["b"].dtype == torch.bfloat16
    assert (copied["c"].shape, copied["c"].item()) == ((), 7)


def test_memory_is_used_again() -> None:
    memory = HostMemory()
    [(_, first)] = memory.copy([("a", torch.ones(1000))])
    [(_, second)] = memory.copy([("a", torch.full((1000,), 2.0))])
    assert first.data_ptr() == second.data_ptr()
    assert second[0] == 2.0


def test_memory_grows_where_more_is_to_be_copied() -> None:
    memory, live = HostMemory(), [("a", torch.ones(1001)), ("b", torch.ones(3, dtype=torch.bfloat16))]
    memory.copy(live)
    more = memory.copy([*live, ("c", torch.ones(2000))])
    assert [bool((held == 1).all()) for _, held in more] == [True] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_seen(value: float) -> None:
    assert finite(torch.ones(5))
    assert finite(torch.ones(0))
    assert not finite(torch.tensor([1.0, value, -1.0]))


def test_a_tensor_is_looked_at_before_it_is_written(tmp_path: Path) -> None:
    path, seen = tmp_path / "x", []

    def check(name: str, tensor: torch.Tensor) -> None:
        seen.append((name, path.stat().st_size))
        if name == "b":
            raise RunFailed("b")

    with pytest.raises(RunFailed, match=r"^b$"):
        store.write_tensors(path, [("a", torch.ones(8)), ("b", torch.ones(8)), ("c", torch.ones(8))], check)
    assert seen == [("a", 0), ("b", 0)]  # what is so little is written at the end


def test_bytes_that_come_back_changed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.safetensors"
    digest = store.write_tensors(path, [("a", torch.ones(8))])
    store.read_back(path, digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFailed, match="was read back with other bytes"):
        store.read_back(path, digest)
