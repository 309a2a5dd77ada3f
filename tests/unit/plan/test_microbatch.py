"""What a micro-batch holds at least."""

from __future__ import annotations

from distft.plan.duration import Shape
from distft.plan.microbatch import emptiest
from tests.unit.recipes import recipe


def test_the_emptiest_rows_that_a_recipe_allows() -> None:
    full = Shape(4, 1024, 0, 4096)
    plain, packed = (recipe(data={"train": "/d", "packing": one}) for one in (None, True))
    assert emptiest(full, plain) == Shape(4, 1, 0, 4)
    assert emptiest(full, packed) == Shape(4, 512, 0, 4)
    heard = recipe(task={"type": "speech-seq2seq"})
    assert emptiest(Shape(2, 1500, 448, 896), heard) == Shape(2, 1500, 1, 2)
