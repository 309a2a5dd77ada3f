"""What a step is measured by. There is no GPU here: what torch would say of one is put in its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from distft.process import distributed
from distft.tasks.shared.lengths import Lengths
from distft.training import memory, setup
from distft.training.flops import Attention, Work
from distft.training.memory import EVERY, MemoryMeter, worst
from distft.training.throughput import Meter, peak_of

WORK = Work(6.0, 0.0, 60.0, 0.0, [Attention(12.0, True)], [], True)
GPU = torch.device("cuda", 0)


@dataclass
class Batch:
    lengths: Lengths
    part: str | None = None


def test_speed_and_utilization() -> None:
    meter = Meter({None: WORK}, peak=1e12)
    flops = meter.flops(Batch(Lengths([100, 20], 5)))
    assert flops == 6 * 120 + 60 * 5 + 12 * (100**2 + 20**2) / 2
    figures = meter.step(120, flops)
    assert figures["useful_tokens_per_s"] * figures["seconds"] == pytest.approx(120)
    assert figures["mfu"] * figures["seconds"] * 1e12 == pytest.approx(flops)


@pytest.mark.parametrize(
    ("meter", "batch"),
    [(Meter({None: WORK}, None), Batch(Lengths([3], 1))), (Meter({None: None}, 1.0), Batch(Lengths([3], 1))),
     (Meter({"a": WORK}, 1.0), Batch(Lengths([3], 1), "b")), (Meter({None: WORK}, 1.0), object())],
)  # fmt: skip
def test_no_utilization_where_peak_or_flops_are_not_known(meter: Meter, batch: Any) -> None:
    assert math.isnan(meter.flops(batch))
    assert "mfu" not in meter.step(10, meter.flops(batch))


def test_the_peak_is_of_bf16_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A10G")
    assert peak_of(GPU, "bf16") == 70e12
    assert peak_of(GPU, "fp32") is None
    assert peak_of(torch.device("cpu"), "bf16") is None


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """One rank; what it told the others."""
    told: list[bytes] = []
    monkeypatch.setattr(distributed, "gather_bytes", lambda mine: told.append(mine) or [mine])
    return told


def test_ranks_compare_after_their_first_step_now_and_then_and_at_the_end(alone: list[bytes]) -> None:
    meter, compared = MemoryMeter(torch.device("cpu")), []
    for step in range(7, 3 * EVERY + 6):
        assert meter.step()["memory_bytes"] > 1e7
        if found := meter.compare(step, last=step == 3 * EVERY + 5):
            compared.append(step)
            assert found["worst_memory_bytes"] > 1e7
            assert found["worst_memory_rank"] == 0
            assert "worst_memory_reserved_bytes" not in found  # a CPU has none
            assert found["worst_memory_peak_bytes"] > 0.9 * found["worst_memory_bytes"]
    assert compared == [7, EVERY, 2 * EVERY, 3 * EVERY, 3 * EVERY + 5]
    assert len(alone) == len(compared)


def test_peaks_on_a_gpu_are_of_an_interval_and_this_ranks_of_the_whole_attempt(
    monkeypatch: pytest.MonkeyPatch, alone: list[bytes]
) -> None:
    peaks = {"allocated": 0, "reserved": 0}

    def reset(device: torch.device) -> None:
        peaks.update(allocated=5, reserved=6)

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks["allocated"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: peaks["reserved"])
    monkeypatch.setattr(memory.torch.cuda, "reset_peak_memory_stats", reset)
    meter = MemoryMeter(GPU)
    peaks.update(allocated=90, reserved=100)
    assert meter.step() == {"memory_bytes": 90.0}
    assert meter.compare(1, last=False) == {
        "worst_memory_bytes": 90.0, "worst_memory_rank": 0, "worst_memory_reserved_bytes": 100.0
    }  # fmt: skip
    assert meter.step() == {"memory_bytes": 90.0}  # this rank's peak so far, as ever
    found = meter.compare(EVERY, last=False)
    assert (found["worst_memory_bytes"], found["worst_memory_reserved_bytes"]) == (5.0, 6.0)


def test_the_worst_rank_is_the_one_nearest_to_running_out() -> None:
    assert worst([(5, 9), (7, 8)], reserved=True) == {
        "worst_memory_bytes": 7.0, "worst_memory_rank": 0, "worst_memory_reserved_bytes": 9.0
    }  # fmt: skip
    assert worst([(5, 9), (7, 8)], reserved=False) == {
        "worst_memory_bytes": 7.0, "worst_memory_rank": 1, "worst_memory_peak_bytes": 9.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("peak", "hears", "model", "said"),
    [
        (1e12, False, None, []),
        (
            None,
            False,
            None,
            ["the bf16 peak of NVIDIA X1, or of another rank's GPU, is not known, so no mfu is recorded"],
        ),
        (1e12, True, None, ["the FLOPs of this model are not known, so no mfu is recorded"]),
        (1e12, False, "again", ["the FLOPs of this model are not known, so no mfu is recorded"]),
    ],
)
def test_why_there_is_no_utilization_is_said_once(
    monkeypatch: pytest.MonkeyPatch, peak: float | None, hears: bool, model: str | None, said: list[str]
) -> None:
    config = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
    if model is None:
        made: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, intermediate_size=64))
    else:
        made = transformers.AlbertForMaskedLM(transformers.AlbertConfig(**config, embedding_size=8))
    monkeypatch.setattr(setup, "peak_of", lambda device, dtype: peak)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X1")
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda values: [2 * value for value in values])
    context: Any = SimpleNamespace(
        recipe=SimpleNamespace(engine=SimpleNamespace(dtype="bf16")),
        model_spec=SimpleNamespace(family=SimpleNamespace(hears=hears)),
        specs={None: None},
    )
    ranks, engine = SimpleNamespace(device=GPU), SimpleNamespace(module=made)
    heard: list[str] = []
    meter = setup.make_meter(context, engine, SimpleNamespace(), ranks, SimpleNamespace(say=heard.append))  # type: ignore[arg-type]
    assert heard == said
    figures = meter.step(10, meter.flops(Batch(Lengths([10], 4))))
    assert ("mfu" in figures) == (not said)
