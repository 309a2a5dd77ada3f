"""How a step is cut and recomputed: the values of `train.micro_batch` and `model.activation_checkpointing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, WithJsonSchema

from distft.recipe.section import Positive

AUTO: Final = "auto"
_BY_BOOL = {True: "full", False: "off"}  # all that there was before "selective"


def _named(value: Any) -> Any:
    return _BY_BOOL[value] if isinstance(value, bool) else value


RowsAtOnce = Positive | Literal["auto"]
Checkpointing = Annotated[
    Literal["auto", "full", "selective", "off"],
    BeforeValidator(_named),
    WithJsonSchema({"anyOf": [{"enum": ["auto", "full", "selective", "off"]}, {"type": "boolean"}]}),
]

EVERY: Mapping[str, int] = {"off": 0, "selective": 2, "full": 1}
"""Which layers are computed again: each first one of so many; 0: none."""
