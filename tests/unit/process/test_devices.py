"""Which GPU a rank takes. There is none here: what torch would say of them is put in its place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from distft.errors import UserError
from distft.inference import passes, predictor
from distft.process import devices, distributed, environment
from distft.process.console import Console
from distft.process.devices import allocator_settings, gpus, index_among, local_rank, take_device


@pytest.mark.parametrize(
    ("visible", "count"),
    [("", 0), ("0", 1), ("0,1", 2), (" 2 , 3 ", 2), ("-1", 0), ("0,-1,1", 1), ("NoDevFiles", 0), ("7,5,3,1", 4),
     ("GPU-8932f937-d72c,GPU-1f22", 2), ("MIG-GPU-8932/1/0", 1)],
)  # fmt: skip
def test_gpus_are_counted_as_cuda_counts_them(monkeypatch: pytest.MonkeyPatch, visible: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == count


@pytest.mark.parametrize(("visible", "local", "shared", "index"), [(8, 3, True, 3), (1, 0, True, 0), (1, 3, False, 0)])
def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_it_is_shown(
    visible: int, local: int, shared: bool, index: int
) -> None:
    assert index_among(visible, local, shared) == index


@pytest.mark.parametrize(("visible", "local", "shared"), [(4, 4, True), (1, 1, True), (2, 2, False)])
def test_a_rank_without_a_gpu_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, visible: int, local: int, shared: bool
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError) as caught:
        index_among(visible, local, shared)
    assert str(caught.value) == (
        f"LOCAL_RANK {local} has no GPU: this process sees {visible} (CUDA_VISIBLE_DEVICES is '0,1'); use --nproc "
        f"{visible}, or make more GPUs visible"
    )


def test_the_number_on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_rank() == 0
    monkeypatch.setenv("RANK", "5")
    assert local_rank() == 5  # not 0, where every rank would meet on the first GPU
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_rank() == 1
    monkeypatch.setenv("LOCAL_RANK", "one")
    with pytest.raises(UserError, match="LOCAL_RANK is 'one'"):
        local_rank()


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine on which torch sees four GPUs; what was done, in order."""
    done: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: done.append(index))
    monkeypatch.setenv(environment.PARENT, str(os.getppid()))
    return done


def test_without_gpus_it_is_the_cpu() -> None:
    assert take_device(7) == torch.device("cpu")


def test_a_predictor_takes_its_device_before_it_loads_anything(
    monkeypatch: pytest.MonkeyPatch, four_gpus: list[Any], tmp_path: Path
) -> None:
    class Opened(Exception):
        pass

    def open_run(folder: Path) -> None:
        four_gpus.append("run")
        raise Opened

    monkeypatch.setattr(predictor, "RunDir", open_run)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(Opened):
        predictor.Predictor(tmp_path, None)
    assert four_gpus == [3, "run"]


class Met(Exception):
    """A rank has come to where it meets the others."""


@pytest.fixture
def alone_on_a_gpu(monkeypatch: pytest.MonkeyPatch, four_gpus: list[Any]) -> list[Any]:
    """A rank that sees one GPU, up to where it meets the others."""

    def meet(*_: Any, **__: Any) -> None:
        raise Met

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: None)
    monkeypatch.setattr(distributed.numa, "bind", lambda properties, ranks: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(distributed, "TCPStore", meet)
    monkeypatch.delenv(environment.PARENT)
    for name, value in {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return four_gpus


def test_deepspeed_is_told_the_device_of_a_rank_that_sees_one_gpu(alone_on_a_gpu: list[Any]) -> None:
    with pytest.raises(Met):
        distributed.init(1)
    assert alone_on_a_gpu == [0]
    assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.parametrize(("bound", "threads"), [("on one core", 1), (None, 3)])
def test_a_rank_on_fewer_cores_computes_with_as_many_threads(
    monkeypatch: pytest.MonkeyPatch, alone_on_a_gpu: list[Any], bound: str | None, threads: int
) -> None:
    monkeypatch.setattr(distributed.numa, "bind", lambda properties, ranks: bound)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(Met):
            distributed.init(1)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("asked", "visible", "started"), [(None, "0,1,2", [3]), (2, "0,1,2", [2]), (None, "", [])])
def test_predict_starts_a_rank_per_gpu(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, visible: str, started: list[int]
) -> None:
    class Work:
        part = stored = None

    found: list[int] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(passes, "begin", lambda work: None)
    monkeypatch.setattr(passes, "needed", lambda work, ranks, console: 1)
    monkeypatch.setattr(passes, "start_workers", lambda nproc, part, checkpoint, shards: found.append(nproc))
    monkeypatch.setattr(passes, "do_parts", lambda work, console: 1)
    assert passes.carry_out(Work(), asked, Console(False)) == 1  # type: ignore[arg-type]
    assert found == started


def test_a_base_in_4_bits_is_loaded_on_the_current_device(
    monkeypatch: pytest.MonkeyPatch, four_gpus: list[Any]
) -> None:
    """transformers is told no device: what it chooses is the one that was set, and not LOCAL_RANK, nor the first."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

    monkeypatch.setattr(torch.cuda, "current_device", lambda: four_gpus[-1])
    monkeypatch.setenv("LOCAL_RANK", "0")
    take_device(2)
    quantizer = Bnb4BitHfQuantizer(BitsAndBytesConfig(load_in_4bit=True))
    assert quantizer.update_device_map(None) == {"": 2}


# --- what torch's allocators are told ---------------------------------------------------------------------------------


def test_allocators_are_told_where_there_are_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    [(name, value)] = allocator_settings({}).items()
    assert (name, value.split(",")) == (
        "PYTORCH_ALLOC_CONF",
        ["expandable_segments:True", "pinned_max_round_threshold_mb:64", "pinned_max_cached_size_mb:64"],
    )
    for theirs in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert allocator_settings({theirs: "max_split_size_mb:128"}) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    ours = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
    assert allocator_settings({}) == {"THP_MEM_ALLOC_ENABLE": "1", **ours}
    assert allocator_settings({"THP_MEM_ALLOC_ENABLE": "0"}) == ours


def test_torch_knows_what_the_allocators_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nobody looks at a key that is not known, but a value of a known one is read."""
    known: Any = torch._C
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    [told] = allocator_settings({}).values()
    before = known._accelerator_getAllocatorSettings()
    try:
        known._accelerator_setAllocatorSettings(told)
        for setting in told.split(","):
            with pytest.raises(ValueError, match=r"stoull|Expected 'True' or 'False'"):
                known._accelerator_setAllocatorSettings(f"{setting.split(':')[0]}:wrong")
    finally:
        known._accelerator_setAllocatorSettings(before)


def test_pinned_memory_that_is_not_rounded_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else torch 2.13 gives a block of 150 MB that was freed to somebody who asks for 200 (pytorch/pytorch#192722)."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    [told] = allocator_settings({}).values()
    limits = dict(setting.split(":") for setting in told.split(",") if setting.startswith("pinned"))
    assert limits["pinned_max_cached_size_mb"] == limits["pinned_max_round_threshold_mb"]


@pytest.mark.parametrize(("torch_version", "settings"), [("2.13.0+cu130", 3), ("2.14.0a0+git1", 3), ("2.12.1", 1)])
def test_an_older_torch_is_told_no_setting_that_it_would_refuse(
    monkeypatch: pytest.MonkeyPatch, torch_version: str, settings: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(devices, "version", lambda package: torch_version)
    [told] = allocator_settings({}).values()
    assert len(told.split(",")) == settings
