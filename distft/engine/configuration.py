"""From a recipe to DeepSpeed's configuration, and the ZeRO stage that runs."""

from __future__ import annotations

from typing import Any

from distft.process.distributed import Ranks
from distft.recipe.adapters import NoAdapter
from distft.recipe.schema import Recipe

BUCKET = 500_000_000  # elements of gradients that are reduced at once, at most
SHARDED_BUCKET, PARTS = 100_000_000, 8  # under stage 3, whose bucket stays between steps: less, and at most an eighth


def stage(recipe: Recipe) -> int:
    """The ZeRO stage that runs.

    bf16 needs fp32 masters, which stage 0 does not keep. With gradients in fp32 beside weights in bf16, DeepSpeed's
    stage 1 is an optimizer of another kind, without fragments.
    """
    if recipe.engine.dtype == "bf16":
        return max(recipe.engine.zero_stage, 2 if recipe.engine.grad_dtype == "fp32" else 1)
    return recipe.engine.zero_stage


def bucket_elements(recipe: Recipe, trainable: int) -> int:
    """Elements of gradients that are reduced at once, at most. A weight that is larger is reduced by itself."""
    mixed = recipe.engine.dtype == "bf16" and recipe.engine.grad_dtype == "fp32"
    if stage(recipe) == 3:
        most, part = SHARDED_BUCKET, trainable // PARTS
    else:
        most, part = BUCKET // (2 if mixed else 1), trainable  # then a copy in fp32 is made of each bucket
    # The default allocates hundreds of MB for the smallest model; an odd number is refused.
    return min(most, max(part + part % 2, 100_000))


def configuration(recipe: Recipe, ranks: Ranks, trainable: int, total: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        trainable, total: numbers of elements: of trained ones, which bound its buffers, and of all.
    """
    on_gpu = ranks.device.type == "cuda"
    grad_dtype = recipe.engine.grad_dtype if recipe.engine.dtype == "bf16" else "fp32"
    bucket = bucket_elements(recipe, trainable)
    zero: dict[str, Any] = {
        "stage": stage(recipe),
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        "contiguous_gradients": True,
        # To overlap costs a second bucket and waits for the device after each backward: gradients of adapters are
        # too small for that to pay.
        "overlap_comm": on_gpu and isinstance(recipe.adapter, NoAdapter),
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
