"""What a micro-batch holds at least."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distft.plan.duration import Shape
from distft.plan.microbatch import attention, emptiest
from tests.unit.recipes import recipe


def test_the_emptiest_rows_that_a_recipe_allows() -> None:
    full = Shape(4, 1024, 0, 4096)
    plain, packed = (recipe(data={"train": "/d", "packing": one}) for one in (None, True))
    assert emptiest(full, plain) == Shape(4, 1, 0, 4)
    assert emptiest(full, packed) == Shape(4, 512, 0, 4)
    heard = recipe(task={"type": "speech-seq2seq"})
    assert emptiest(Shape(2, 1500, 448, 896), heard) == Shape(2, 1500, 1, 2)


@pytest.mark.parametrize(
    ("model_type", "causal", "dropout", "dtype", "on_cpu", "on_gpu"),
    [
        ("bert", False, 0.1, "bf16", "varlen", "sdpa"),  # torch's kernel drops nothing out
        ("modernbert", False, 0.0, "bf16", "varlen", "varlen"),
        ("bert", False, 0.0, "fp32", "varlen", "sdpa"),
        ("deberta-v2", False, 0.1, "bf16", "eager", "eager"),
        ("llama", True, 0.0, "bf16", "sdpa", "sdpa"),
    ],
)
def test_encoders_are_told_where_documents_begin(
    model_type: str, causal: bool, dropout: float, dtype: str, on_cpu: str, on_gpu: str
) -> None:
    layers = SimpleNamespace(attention=SimpleNamespace(causal=causal, dropout=dropout, bias=False))
    model: Any = SimpleNamespace(model_type=model_type, stacks=(SimpleNamespace(layers=(layers,)),))
    wanted = recipe(task={"type": "sequence-classification"}, engine={"dtype": dtype})
    assert (attention(wanted, model, False), attention(wanted, model, True)) == (on_cpu, on_gpu)


@pytest.mark.parametrize(
    ("model_type", "dropout", "bias", "on_gpu"),
    [
        ("bart", 0.0, False, "varlen"),
        ("bart", 0.1, False, "sdpa"),
        ("t5", 0.0, True, "sdpa"),
        ("umt5", 0.0, True, None),
    ],
)
def test_encoder_decoders_are_told_where_documents_begin(
    model_type: str, dropout: float, bias: bool, on_gpu: str | None
) -> None:
    """Where torch's kernel is to do it, without scores that are dropped or biased."""
    layers = SimpleNamespace(attention=SimpleNamespace(causal=True, dropout=dropout, bias=bias))
    model: Any = SimpleNamespace(model_type=model_type, stacks=(SimpleNamespace(layers=(layers,)),) * 2)
    wanted = recipe(task={"type": "seq2seq-lm"}, engine={"dtype": "bf16"})
    found = attention(wanted, model, False), attention(wanted, model, True)
    assert found == (("varlen", on_gpu) if on_gpu else ("sdpa", "sdpa"))
    assert attention(recipe(task={"type": "speech-seq2seq"}), model, False) == "sdpa"
