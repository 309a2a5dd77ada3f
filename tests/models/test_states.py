"""States on a rank against live tensors that were counted in real engines, and ZeRO's limits against the engine's.

counted.jsonl was written by `benchmarks/plan_states.py` (commits 495f89a to 0a3c0f8; stage 3 after its bucket was made
smaller; torch 2.13, DeepSpeed 0.19.8, CPUs, gloo): what the last rank held of weights, masters, moments, gradients,
buckets and the rest after a first step of one micro-batch, after the first and the last of two micro-batches of a
second step, and the most at once: in the micro-batch of the first step, in the last one of the second, and in its
update.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distft.engine.configuration import configuration, stage
from distft.plan import states
from distft.plan.states import (
    BYTES,
    Moment,
    Sharding,
    States,
    bucket,
    in_parts,
    persistence_threshold,
    reduction_bytes,
    state_bytes,
    update_bytes,
)
from distft.process.distributed import Ranks
from tests.unit.recipes import recipe

AT: tuple[Moment, ...] = ("rest", "accumulating", "reduced")
COUNTED = [json.loads(line) for line in Path(__file__).with_name("counted.jsonl").read_text().splitlines()]
COUNTED_ONCE = [json.loads(line) for line in Path(__file__).with_name("counted_once.jsonl").read_text().splitlines()]
# elements of the weights of a Llama of four layers, in the model's order, and of LoRA of rank 16
BASE = [512_000, *[*[65_536] * 4, *[163_840] * 3, 256, 256] * 4, 256]
LORA = [*[4096] * 9, 10_240, 4096, 10_240, 10_240, 4096] * 4


@pytest.mark.parametrize("counted", COUNTED, ids=lambda found: " ".join(map(str, found["case"])))
def test_states_are_those_that_were_counted(counted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, dtype, grad_dtype, zero_stage, world, offload, most = counted["case"]
    monkeypatch.setattr(states, "BUCKET", most)
    trained, frozen = (LORA, BASE) if adapter == "lora" else (BASE, [])
    for at in AT:
        sharding = Sharding(world, zero_stage, dtype, grad_dtype, accumulates=at != "rest", offload=offload)
        weights, masters, moments, gradients, buckets, rest = counted[at]
        found = state_bytes(trained, frozen, sharding, at, rank=world - 1)
        whole = weights + masters + moments + gradients + buckets + rest
        assert found.total == pytest.approx(whole, rel=0.001), at
        assert found.masters == pytest.approx(masters, rel=0.001)
        assert found.moments == pytest.approx(moments, rel=0.001)
        assert found.weights == pytest.approx(weights, rel=0.001)
        assert found.gradients == pytest.approx(gradients, rel=0.001)
        assert found.buckets == pytest.approx(buckets, rel=0.001)


@pytest.mark.parametrize("counted", COUNTED, ids=lambda found: " ".join(map(str, found["case"])))
def test_peaks_are_those_that_were_counted(counted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, dtype, grad_dtype, zero_stage, world, offload, most = counted["case"]
    monkeypatch.setattr(states, "BUCKET", most)
    trained, frozen = (LORA, BASE) if adapter == "lora" else (BASE, [])
    # what is not the engine's: autograd's copies of the tied embedding's gradient, and under stage 3 a gathered weight;
    # with small buckets a weight's gradient beside a bucket that is full
    at_once = bucket(sum(trained), Sharding(world, zero_stage, dtype, grad_dtype)) >= sum(trained)
    others = {1: 3, 2: 0, 3: 1}.get(zero_stage, 0) if at_once else {0: 0, 1: 3, 2: 2, 3: 4}[zero_stage]
    others = 3 if (zero_stage, world) == (0, 1) else others  # which has no copy of its gradients that would be more
    others *= BYTES[dtype] * max(BASE)
    first, second, update = counted["peaks"]
    rank = world - 1
    for accumulates, peak in ((False, first), (True, second)):
        sharding = Sharding(world, zero_stage, dtype, grad_dtype, accumulates, offload)
        rest = state_bytes(trained, frozen, sharding, "rest", rank).total
        found = rest + reduction_bytes(trained, sharding, rank)
        # with three ranks the copy that gloo has reduced was sometimes still there when the rank's own part was made
        late = state_bytes(trained, frozen, sharding, "reduced", rank).gradients if (zero_stage, world) == (2, 3) else 0
        assert found * 0.999 <= peak <= (found + others + late) * 1.005
    assert rest + update_bytes(trained, sharding, rank) == pytest.approx(update, rel=0.002)


@pytest.mark.parametrize("counted", COUNTED_ONCE, ids=lambda found: " ".join(map(str, found["case"])))
def test_states_of_gradients_that_are_reduced_once(counted: Any) -> None:
    """The peak is that of the reduction; under stage 3 it depends on when autograd lets go of what it holds."""
    adapter, dtype, grad_dtype, zero_stage, world = counted["case"]
    trained, frozen = (LORA, BASE) if adapter == "lora" else (BASE, [])
    sharding = Sharding(world, zero_stage, dtype, grad_dtype, accumulates=True, once=True)
    for at in AT:
        found = state_bytes(trained, frozen, sharding, at, rank=world - 1)
        parts = (found.weights, found.masters, found.moments, found.gradients, found.buckets)
        assert parts == pytest.approx(counted[at][:5], rel=0.002), at
    rest = state_bytes(trained, frozen, sharding, "rest", rank=world - 1).total
    found_peak = rest + reduction_bytes(trained, sharding, rank=world - 1)
    if zero_stage == 2:
        assert found_peak == pytest.approx(counted["peak"], rel=0.002)
    else:
        others = BYTES[dtype] * max(BASE) * 2
        assert (counted["peak"] - others) * 0.999 <= found_peak <= counted["peak"] * 1.1


def test_one_weight_on_one_rank() -> None:
    assert state_bytes([1000], [500], Sharding(1, 0, "fp32", "fp32")) == States(6000, 0, 8000, 4000, 0)
    assert state_bytes([1000], [500], Sharding(1, 2, "bf16", "fp32")) == States(3000, 4000, 8000, 4000, 0)
    assert state_bytes([1000], [500], Sharding(2, 1, "bf16", "bf16")) == States(3000, 2000, 4000, 2000, 0)


def test_an_optimizer_without_moments_keeps_none() -> None:
    assert state_bytes([1000], [], Sharding(1, 2, "fp32", "fp32", moments=0)).moments == 0


@pytest.mark.parametrize(
    ("sizes", "part", "expected"),
    [([6, 7], 7, [[6, 7], [7]]), ([6, 6], 4, [[6], [6, 6], [6]]), ([1, 10, 1], 4, [[1, 10], [10], [10, 1]])],
)
def test_weights_that_lie_in_a_part(sizes: list[int], part: int, expected: list[list[int]]) -> None:
    assert in_parts(sizes, part, len(expected)) == expected


def test_the_fullest_rank_decides() -> None:
    sharding = Sharding(3, 2, "fp32", "fp32")
    each = [state_bytes([6, 6], [], sharding, rank=rank).gradients for rank in range(3)]
    assert each == [24, 48, 24]
    assert state_bytes([6, 6], [], sharding).gradients == 48


@pytest.mark.parametrize("elements", [5_000, 3_528_961, 2_000_000_000])
@pytest.mark.parametrize("dtypes", [("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_limits_are_those_of_the_engine(elements: int, dtypes: tuple[str, str], zero_stage: int) -> None:
    dtype, grad_dtype = dtypes
    made = recipe(engine={"zero_stage": zero_stage, "dtype": dtype, "grad_dtype": grad_dtype})
    ranks = Ranks(0, 0, 2, torch.device("cpu"), None)  # type: ignore[arg-type]
    zero = configuration(made, ranks, elements, elements)["zero_optimization"]
    assert zero["reduce_bucket_size"] == bucket(elements, Sharding(2, stage(made, 2), dtype, grad_dtype))
    assert zero["stage3_param_persistence_threshold"] == persistence_threshold(elements)
