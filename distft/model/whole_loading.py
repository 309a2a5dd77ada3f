"""A base model as transformers loads it: all weights of its files in one process, or by DeepSpeed into shards."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from distft.errors import UserError, first_line
from distft.recipe.schema import Recipe
from distft.tasks.protocol import Labels, ModelSpec


def load(
    folder: Path,
    recipe: Recipe,
    spec: ModelSpec,
    labels: Labels,
    quantized: bool,
    chosen: str,
    dtype: torch.dtype,
    nowhere: bool = False,
) -> tuple[Any, frozenset[str]]:
    """The model, and the names of what its files lack, or have of another shape.

    Args:
        chosen: the implementation of attention.
        nowhere: on the device "meta", the same model but for its weights, which are not read.
    """
    import transformers

    loaded, info = getattr(transformers, spec.auto_class).from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=chosen,
        **(_four_bits(dtype) if quantized else {}),
        **({"device_map": "meta"} if nowhere else {}),
        **spec.head(labels),
        ignore_mismatched_sizes=spec.trains_head,
        trust_remote_code=recipe.model.trust_remote_code,
        output_loading_info=True,
    )
    return loaded, frozenset([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])


@contextmanager
def in_a_sentence(folder: Path, recipe: Recipe) -> Iterator[None]:
    """What transformers cannot load, as a UserError."""
    from safetensors import SafetensorError

    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" in str(error):
            raise UserError(
                f"model.path: the weights in {folder} do not match its config.json; download it again"
            ) from None
        if "size mismatch" not in str(error):
            raise
        raise UserError(
            f"model.path: {folder} has a head of another size, which ZeRO-3 cannot replace during loading; "
            "use engine.zero_stage 0, 1 or 2, or a model without that head"
        ) from None
    except (
        OSError,
        ValueError,
        ImportError,
        KeyError,
        SafetensorError,
        UnpicklingError,
        StrictDataclassError,
    ) as error:
        raise UserError(
            f"model.path: {folder} cannot be loaded for task.type {recipe.task.type}: {first_line(error)}"
        ) from None


def _four_bits(dtype: torch.dtype) -> dict[str, Any]:
    """QLoRA's own settings (Dettmers et al. 2023, arXiv:2305.14314): NF4, scales quantised once more."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "adapter.quantize: nf4 needs the library bitsandbytes; install distft[qlora], or leave adapter.quantize out"
        )
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": settings}
