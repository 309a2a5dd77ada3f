"""Where states lie, against tensors that were counted, and against what torch and DeepSpeed document.

counted_params.jsonl was written by `benchmarks/plan_states.py FILE params 1 2` (torch 2.13, DeepSpeed 0.19.8, CPUs,
gloo): weights, masters, moments, gradients, buckets and the rest under stage 3 with `engine.offload_params`, with
`engine.offload_optimizer` or without, after a second step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distft.plan.placement import pinned, placed
from distft.plan.states import Sharding, state_bytes
from tests.models.test_states import BASE, LORA

COUNTED = [json.loads(line) for line in Path(__file__).with_name("counted_params.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("counted", COUNTED, ids=lambda found: " ".join(map(str, found["case"])))
def test_offloaded_weights_on_a_cpu_are_those_that_were_counted(counted: Any) -> None:
    adapter, dtype, grad_dtype, world, offload = counted["case"]
    trained, frozen = (LORA, BASE) if adapter == "lora" else (BASE, [])
    sharding = Sharding(world, 3, dtype, grad_dtype, accumulates=True, offload=offload)
    found = placed(trained, frozen, sharding, offload_params=True, on_gpu=False)
    assert sum(found.device.values()) == pytest.approx(sum(counted["rest"]), rel=0.001)
    assert not found.host


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("grad_dtype", ["bf16", "fp32"])
def test_on_a_cpu_nothing_is_lost_and_nothing_counts_twice(stage: int, offload: bool, grad_dtype: str) -> None:
    if offload and stage == 0:
        return
    sharding = Sharding(2, stage, "fp32" if stage == 0 else "bf16", grad_dtype, True, offload)
    found = placed(LORA, BASE, sharding, offload_params=False, on_gpu=False)
    assert sum(found.device.values()) == state_bytes(LORA, BASE, sharding, "rest").total


def test_what_an_offloaded_optimizer_leaves_on_a_gpu() -> None:
    """Stage 2: the weights, and a buffer as large as the largest of them; the host has the rest, pinned but for what
    torch's optimizer makes."""
    found = placed([1000, 24], [500], Sharding(2, 2, "bf16", "fp32", offload=True), False, on_gpu=True)
    assert {name: size for name, size in found.device.items() if size} == {
        "weights": 2 * (1024 + 500),
        "gradients": 2 * 1000,
    }
    assert found.host == {
        "fp32 masters": 4 * 512,
        "moments": 8 * 512,
        "gradients": 4 * 512 + 2048,
        "updated weights": 2 * 512,
    }


def test_what_stage_3_leaves_on_a_gpu_when_all_is_offloaded() -> None:
    """A bucket, which DeepSpeed keeps where it reduces; weights are pinned each by itself if they are frozen."""
    found = placed([1024], [768], Sharding(2, 3, "bf16", "bf16", offload=True), True, on_gpu=True)
    assert {name: size for name, size in found.device.items() if size} == {"buckets": 2 * 100_000}
    assert found.host["weights"] == 2 * 512 + pinned(2 * 384)
    assert found.host["gradients"] == (4 + 2) * 512


@pytest.mark.parametrize(
    ("size", "expected"), [(0, 0), (1, 1), (4096, 4096), (4097, 8192), (64 << 20, 64 << 20), (65 << 20, 65 << 20)]
)
def test_pinned_memory_is_rounded_up_unless_it_is_large(size: int, expected: int) -> None:
    assert pinned(size) == expected
