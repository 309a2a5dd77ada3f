"""Which layers of a model are computed again in the backward pass, by transformers' own means."""

from __future__ import annotations

from typing import Any

from distft.errors import UserError, first_line
from distft.recipe.batch import EVERY
from distft.recipe.schema import Model


def recompute(loaded: Any, model: Model) -> None:
    """Have layers of a model computed again as the recipe says. `auto` that is not settled is of somebody who does not
    train.

    Raises:
        UserError: the model's class cannot do so, or transformers is too old for it.
    """
    every = EVERY.get(model.activation_checkpointing, 0)
    if not every:
        return
    # what older versions have
    enable = getattr(loaded, "activation_checkpointing_enable", None) or loaded.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False}, **({"every_n_layers": every} if every > 1 else {}))
    except ValueError as error:
        raise UserError(f"model.activation_checkpointing: {first_line(error).rstrip('.')}; set it to off") from None
    except TypeError:
        text = "this version of transformers recomputes all layers or none; set it to full or off, or install a newer"
        raise UserError(f"model.activation_checkpointing selective: {text}") from None
