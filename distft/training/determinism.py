"""`engine.deterministic`: only kernels that give the same bits each time, and a sentence where there is none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distft.errors import UserError
from distft.recipe.schema import Recipe

_VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what torch asks for, before cuBLAS is first used
    "FLASH_ATTENTION_DETERMINISTIC": "1",  # read by transformers at each call
}


@contextmanager
def asked_for(recipe: Recipe) -> Iterator[None]:
    """Within, what has no deterministic kernel is refused if the recipe asks for them. Before CUDA is first used.

    Raises:
        UserError: the recipe asks for them, and something within has none.
    """
    if not recipe.engine.deterministic:
        yield
        return
    os.environ.update(_VARIABLES)
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs time
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        what = str(error).partition(" does not have")[0].strip().splitlines()[0]
        raise UserError(
            f"engine.deterministic: {what} has no deterministic kernel in torch {torch.__version__}; try another "
            "model.attention, or leave engine.deterministic out (verify-resume does with --tolerance 1e-3)"
        ) from None
    finally:
        torch.use_deterministic_algorithms(False)
