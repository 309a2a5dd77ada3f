"""Recipe section `checkpoint`: how often the state is saved, and which checkpoints stay."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distft.recipe.section import Positive, Section


class Checkpoint(Section):
    every: Positive = Field(100, description="steps between checkpoints")
    keep: Positive = Field(2, description="number of newest checkpoints to keep")
    keep_hours: Annotated[float, Field(ge=0)] = Field(
        0.0, description="checkpoints that are younger than this many hours stay too, however many they are"
    )
