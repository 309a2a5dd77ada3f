"""What DeepSpeed is told. The device is only named here: there is no GPU."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from distft.engine.configuration import configuration, reduces_once, stage
from distft.process.distributed import Ranks
from tests.unit.recipes import recipe

BILLIONS = 8_000_000_000


def told(device: str, total: int = BILLIONS, **sections: Any) -> dict[str, Any]:
    ranks = Ranks(0, 0, 2, torch.device(device), cast(Any, None))
    return configuration(recipe(**sections), ranks, trainable=total, total=total)


@pytest.mark.parametrize(
    ("wanted", "dtype", "grad_dtype", "runs"),
    [
        (0, "fp32", "fp32", 0),
        (1, "fp32", "fp32", 1),
        (0, "bf16", "fp32", 2),
        (1, "bf16", "fp32", 2),
        (3, "bf16", "fp32", 3),
        (0, "bf16", "bf16", 1),
        (1, "bf16", "bf16", 1),
    ],
)
def test_bf16_needs_a_stage_that_can_do_it(wanted: int, dtype: str, grad_dtype: str, runs: int) -> None:
    engine = {"zero_stage": wanted, "dtype": dtype, "grad_dtype": grad_dtype}
    assert stage(recipe(engine=engine), 2) == runs == told("cpu", engine=engine)["zero_optimization"]["stage"]


@pytest.mark.parametrize("grad_dtype", ["bf16", "fp32"])
def test_micro_batches_and_ranks_add_up_in_the_same_dtype(grad_dtype: str) -> None:
    found = told("cpu", engine={"grad_dtype": grad_dtype})
    assert found["data_types"]["grad_accum_dtype"] == found["communication_data_type"] == grad_dtype


def test_gradients_of_fp32_stay_fp32_under_the_earlier_default() -> None:
    found = told("cpu", engine={"dtype": "fp32", "grad_dtype": "bf16"})
    assert found["data_types"]["grad_accum_dtype"] == found["communication_data_type"] == "fp32"


def test_nobody_waits_for_the_device_to_measure() -> None:
    assert told("cuda")["timers"] == {"throughput": {"enabled": False}}


@pytest.mark.parametrize(
    ("device", "adapter", "overlaps"), [("cuda", "none", True), ("cuda", "lora", False), ("cpu", "none", False)]
)
def test_only_large_gradients_are_reduced_beside_the_backward(device: str, adapter: str, overlaps: bool) -> None:
    assert told(device, adapter={"type": adapter})["zero_optimization"]["overlap_comm"] is overlaps


def test_deepspeeds_limits_hold_for_billions_and_shrink_with_the_model() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    defaults = {field.alias: int(field.default) for field in fields.values() if field.alias}
    limits = {key: value for key, value in told("cuda")["zero_optimization"].items() if key.startswith("stage3_")}
    assert len(limits) == 4
    assert limits == {key: defaults[key] for key in limits}
    small = told("cuda", total=1_000_000)["zero_optimization"]
    assert small["stage3_param_persistence_threshold"] == 100
    assert small["stage3_max_live_parameters"] == small["stage3_max_reuse_distance"] == 125_000


@pytest.mark.parametrize(
    ("engine", "adapter", "micro_batch", "once"),
    [
        ({}, "lora", 1, True),
        ({}, "lora", 4, False),  # there is one micro-batch on each of the two ranks
        ({}, "none", 1, False),
        ({"reduce": "step"}, "none", 1, True),
        ({"reduce": "micro_batch"}, "lora", 1, False),
        ({"dtype": "fp32", "zero_stage": 1, "reduce": "step"}, "lora", 1, False),  # which does so by itself
        ({"zero_stage": 3}, "lora", 1, True),
        ({"offload_optimizer": True}, "lora", 1, False),
    ],
)
def test_gradients_that_are_reduced_once(engine: dict[str, Any], adapter: str, micro_batch: int, once: bool) -> None:
    ranks = Ranks(0, 0, 2, torch.device("cpu"), cast(Any, None))
    train = {"steps": 5, "global_batch": 8, "micro_batch": micro_batch}
    made = recipe(engine=engine, adapter={"type": adapter}, train=train)
    assert reduces_once(made, ranks) is once
    told = configuration(made, ranks, BILLIONS, BILLIONS)["zero_optimization"]
    assert told["contiguous_gradients"] is not (once and made.engine.dtype == "bf16")


def test_whole_gradients_have_no_place_beside_an_offloaded_optimizer() -> None:
    with pytest.raises(ValueError, match="does not go with offload_optimizer"):
        recipe(engine={"reduce": "step", "offload_optimizer": True})


@pytest.mark.parametrize(
    ("world", "engine", "runs"),
    [
        (1, {"dtype": "fp32", "zero_stage": 2}, 0),
        (1, {"dtype": "fp32", "zero_stage": 1}, 0),
        (1, {"dtype": "fp32", "zero_stage": 3}, 3),
        (2, {"dtype": "fp32", "zero_stage": 2}, 2),
        (1, {"dtype": "bf16", "zero_stage": 2}, 2),
        (1, {"dtype": "fp32", "zero_stage": 2, "offload_optimizer": True}, 2),
        (1, {"dtype": "fp32", "zero_stage": 2, "reduce": "micro_batch"}, 2),  # runs that were begun before
    ],
)
def test_a_single_rank_in_fp32_does_not_keep_its_weights_twice(world: int, engine: dict[str, Any], runs: int) -> None:
    assert stage(recipe(engine=engine), world) == runs
