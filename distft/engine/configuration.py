"""From a recipe to DeepSpeed's configuration, and the ZeRO stage that runs."""

from __future__ import annotations

from typing import Any

from distft.process.distributed import Ranks
from distft.recipe import reduction
from distft.recipe.adapters import NoAdapter
from distft.recipe.schema import Recipe

BUCKET = 500_000_000  # elements of gradients that are reduced at once, at most
SHARDED_BUCKET, PARTS = 100_000_000, 8  # under stage 3, whose bucket stays between steps: less, and at most an eighth


def stage(recipe: Recipe, world: int) -> int:
    """The ZeRO stage that runs.

    bf16 needs fp32 masters, which stage 0 does not keep. With gradients in fp32 beside weights in bf16, DeepSpeed's
    stage 1 is an optimizer of another kind, without fragments. A single rank shares states with nobody: in fp32 stages
    1 and 2 would keep all weights twice.
    """
    engine = recipe.engine
    if engine.dtype == "bf16":
        return max(engine.zero_stage, 2 if engine.grad_dtype == "fp32" else 1)
    return 0 if reduction.shares_nothing(recipe, world) else engine.zero_stage


def reduces_once(recipe: Recipe, ranks: Ranks) -> bool:
    """Whether ranks add up gradients once per step, where DeepSpeed by itself does so after each micro-batch."""
    return stage(recipe, ranks.world) >= 2 and reduction.reduces_once(recipe, ranks.world)


def is_mixed(recipe: Recipe) -> bool:
    """Gradients in fp32 beside weights in bf16."""
    return recipe.engine.dtype == "bf16" and recipe.engine.grad_dtype == "fp32"


def bucket_elements(recipe: Recipe, world: int, trainable: int) -> int:
    """Elements of gradients that are reduced at once, at most. A weight that is larger is reduced by itself."""
    if stage(recipe, world) == 3:
        most, part = SHARDED_BUCKET, trainable // PARTS
    else:
        most, part = BUCKET // (2 if is_mixed(recipe) else 1), trainable  # then a copy in fp32 is made of each bucket
    # The default allocates hundreds of MB for the smallest model; an odd number is refused.
    return min(most, max(part + part % 2, 100_000))


def configuration(recipe: Recipe, ranks: Ranks, trainable: int, total: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        trainable, total: numbers of elements: of trained ones, which bound its buffers, and of all.
    """
    on_gpu = ranks.device.type == "cuda"
    grad_dtype = recipe.engine.grad_dtype if recipe.engine.dtype == "bf16" else "fp32"
    bucket, once = bucket_elements(recipe, ranks.world, trainable), reduces_once(recipe, ranks)
    zero: dict[str, Any] = {
        "stage": stage(recipe, ranks.world),
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        # DeepSpeed copies gradients into a bucket in the dtype of the weights; sums of several micro-batches are fp32.
        "contiguous_gradients": not (once and is_mixed(recipe)),
        # To overlap costs a second bucket and waits for the device after each backward: gradients of adapters are
        # too small for that to pay.
        "overlap_comm": on_gpu and isinstance(recipe.adapter, NoAdapter) and not once,
        # DeepSpeed's numbers are meant for billions of weights: of a small model it would keep all whole, so that
        # ZeRO 3 saved nothing, and no test of it would try what large ones do.
        "stage3_param_persistence_threshold": min(100_000, total // 10_000),
        "stage3_max_live_parameters": min(1_000_000_000, total // 8),
        "stage3_max_reuse_distance": min(1_000_000_000, total // 8),
        "stage3_prefetch_bucket_size": min(50_000_000, total // 100),
    }
    if recipe.engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if recipe.engine.offload_params:
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    return {
        # Accumulation belongs to the training loop, which tells the engine the last micro-batch of a step.
        "train_micro_batch_size_per_gpu": recipe.train.micro_rows,
        "gradient_accumulation_steps": 1,
        "train_batch_size": recipe.train.micro_rows * ranks.world,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": recipe.train.clip,
        "bf16": {"enabled": recipe.engine.dtype == "bf16"},
        "data_types": {"grad_accum_dtype": grad_dtype},
        # Else ranks add up in bf16: as inexact over many ranks as over many micro-batches.
        "communication_data_type": grad_dtype,
        # It waits for the device in each backward and each step; `training.throughput` measures without that.
        "timers": {"throughput": {"enabled": False}},
    }
