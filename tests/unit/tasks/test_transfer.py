"""A micro-batch's tensors travel together and arrive as they were. Here that is a copy on the CPU, without pinning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from distft.tasks.protocol import collated
from distft.tasks.shared.padding import row_width
from distft.tasks.shared.transfer import ON_CPU, moved

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Inner:
    ids: torch.Tensor
    size: int


@dataclass(frozen=True)
class Outer:
    inner: Inner
    inputs: Mapping[str, torch.Tensor]
    lengths: torch.Tensor = field(metadata=ON_CPU)
    others: Mapping[str, Inner]
    documents: list[str]
    useful_tokens: int = 3


def batch() -> Outer:
    return Outer(
        Inner(torch.arange(7).view(1, 7), 7),
        {
            "half": torch.randn(3, 5).to(torch.bfloat16),
            "mask": torch.tensor([True, False, True]),
            "none": torch.zeros(0, dtype=torch.int64),
            "turned": torch.arange(6, dtype=torch.int32).view(2, 3).t(),
            "scalar": torch.tensor(2.5),
        },
        torch.tensor([1, 2]),
        {"other": Inner(torch.tensor([[-1]], dtype=torch.int8), 1)},
        ["a"],
    )


def all_tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for one in value.values() for tensor in all_tensors(one)]
    return all_tensors(vars(value)) if dataclasses.is_dataclass(value) else []


def test_all_tensors_arrive_as_they_were_in_one_piece() -> None:
    given = batch()
    found = moved(given, CPU)
    assert type(found) is Outer
    assert (found.documents, found.inner.size, found.useful_tokens) == (["a"], 7, 3)
    before, after = all_tensors(given), all_tensors(found)
    assert len(before) == len(after) == 8
    for one, other in zip(before, after, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one, other)
    places = {tensor.untyped_storage().data_ptr() for tensor in after if tensor.numel()} - {
        given.lengths.untyped_storage().data_ptr()
    }
    assert len(places) == 1
    assert found.lengths is given.lengths


def test_a_batch_without_tensors_is_itself() -> None:
    assert moved({"a": 1}, CPU) == {"a": 1}
    assert moved("text", CPU) == "text"


class Plain:
    """A batch of another package, which is no dataclass."""

    useful_tokens = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device


@pytest.mark.parametrize("device", [CPU, torch.device("meta")])
def test_a_batch_that_is_no_dataclass_takes_its_tensors_along_itself(device: torch.device) -> None:
    class Task:
        def collate(self, rows: Any, device: torch.device) -> Plain:
            return Plain(device)

    task: Any = Task()
    assert collated(task, [], device).device == device


def test_a_batch_for_another_device_is_made_on_the_cpu_and_moved() -> None:
    class Task:
        def collate(self, rows: Any, device: torch.device) -> Inner:
            assert device == CPU
            return Inner(torch.arange(5), 5)

    task: Any = Task()
    found: Any = collated(task, [], torch.device("meta"))  # stands for a GPU: it keeps shapes and no values
    assert (found.ids.device.type, found.ids.shape, found.ids.dtype) == ("meta", (5,), torch.int64)


@pytest.mark.parametrize(
    ("longest", "limit", "width"), [(1, None, 64), (64, None, 64), (65, None, 128), (500, 510, 510), (512, 510, 512)]
)
def test_rows_on_a_gpu_have_few_widths(longest: int, limit: int | None, width: int) -> None:
    assert row_width(longest, limit, on_gpu=True) == width
    assert row_width(longest, limit, on_gpu=False) == longest
