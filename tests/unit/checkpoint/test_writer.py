"""The copy that training does not touch, and what came back from the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore

from distft.checkpoint import store
from distft.checkpoint.host_memory import HostMemory
from distft.checkpoint.state import Identity
from distft.checkpoint.writer import PendingSave, Writer, finite
from distft.errors import RunFailed
from distft.process.distributed import Ranks
from distft.recipe.checkpoint import Checkpoint
from distft.run.folder import RunDir
from distft.run.lease import Fence


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


def saved(run: RunDir, step: int, hurries: bool, settings: Checkpoint) -> tuple[str, ...]:
    """What is said of a checkpoint that one rank writes."""
    ranks = Ranks(0, 0, 1, torch.device("cpu"), PrefixStore("x", TCPStore("127.0.0.1", 0, 1, is_master=True)))
    writer = Writer(
        run.checkpoints, Identity("", "", "", {}), ranks, settings, Fence(run, None), lambda seconds: hurries
    )
    run.checkpoints.mkdir(exist_ok=True)
    tensors = [("a|0|master", torch.full((8,), float(step)))]
    return writer._write(PendingSave(1, step, 0, tensors, [], {"step": step}, 0), HostMemory().copy(tensors))


def test_in_a_hurry_nothing_is_read_back_and_nothing_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, read = RunDir(tmp_path), list[str]()
    monkeypatch.setattr(store, "read_back", lambda path, digest, keep: read.append(path.parent.name))
    settings = Checkpoint(keep=1)
    assert saved(run, 1, False, settings) == ()
    [note] = saved(run, 2, True, settings)
    assert "step-00000002 was not read back" in note
    assert [store.step_of(folder) for folder in store.committed(run.checkpoints)] == [2, 1]
    assert [store.flaw(folder) for folder in store.committed(run.checkpoints)] == [None, None]
    assert saved(run, 3, False, settings) == ()
    assert [store.step_of(folder) for folder in store.committed(run.checkpoints)] == [3]
    assert [name.split("-")[2] for name in read] == ["00000001", "00000003"]


def test_that_the_next_one_will_not_fit_is_said_in_time(tmp_path: Path) -> None:
    assert store.lacking_room(tmp_path, 1) is None
    assert "the next checkpoint will not fit" in str(store.lacking_room(tmp_path, 1 << 60))


def test_bytes_that_come_back_changed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.safetensors"
    digest = store.write_tensors(path, [("a", torch.ones(8))])
    store.read_back(path, digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFailed, match="was read back with other bytes"):
        store.read_back(path, digest)
