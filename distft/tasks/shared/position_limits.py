"""Position limits: how many tokens a model accepts."""

from __future__ import annotations

from typing import Any

from distft.errors import UserError
from distft.recipe.tasks import Generation


def positions(model: Any) -> int | None:
    """How many tokens a model takes; None: it knows no limit. RoBERTa and its like count from behind their filler."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    filler = filler_position(model)
    return limit - filler - 1 if limit is not None and filler is not None else limit


def filler_position(model: Any) -> int | None:
    """The position of all padding, behind which those of tokens are counted; None: they are counted from 0."""
    found = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] == "position_embeddings"]
    fillers = [module.padding_idx for module in found if getattr(module, "padding_idx", None) is not None]
    return fillers[0] if fillers else None


def check_positions(model: Any, settings: Generation) -> None:
    """Raises UserError where a decoder has not as many positions as a target may have tokens."""
    names = ("max_target_positions", "max_decoder_position_embeddings", "max_position_embeddings")
    limit = first_of(model, names)
    if limit is not None and settings.longest_target > limit:
        raise UserError(
            f"task.longest_target {settings.longest_target} is more than the decoder's {limit} positions; lower it"
        )


def source_positions(model: Any) -> int | None:
    """How many tokens an encoder-decoder reads; None: it knows no limit."""
    if any(hasattr(module, "make_weights") or hasattr(module, "make_weight") for module in model.modules()):
        return None  # M2M100 and FSMT make more of them when asked
    return first_of(model, ("max_encoder_position_embeddings", "max_source_positions", "max_position_embeddings"))


def check_source(limit: int | None, longest: int) -> None:
    """Raises UserError where an encoder has not as many positions as the longest source has tokens."""
    if limit is not None and longest > limit:
        raise UserError(
            f"a source has {longest} tokens, but the encoder {limit} positions; set data.row_tokens to {limit} or less"
        )


def first_of(model: Any, names: tuple[str, ...]) -> int | None:
    """The first of these numbers that the model's configuration has."""
    return next((int(getattr(model.config, name)) for name in names if hasattr(model.config, name)), None)
