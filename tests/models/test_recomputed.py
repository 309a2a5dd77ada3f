"""Which layers are computed again: the plan's count beside the flags that transformers sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.modeling_layers import GradientCheckpointingLayer

from distft.errors import UserError
from distft.model.recomputation import recompute
from distft.plan.changes import possible
from distft.plan.recomputed import again, convolutions, recomputed, share
from distft.plan.shapes import architecture_of, can_recompute
from tests.models.making import CAUSAL, CLASSIFIES, MASKED, TAGS, made, recipe_of, several, written
from tests.models.small_models import DECODERS, ENCODERS, LISTENERS, TRANSLATORS, WRITERS, Sizes

TASKS: list[tuple[dict[str, Any], dict[str, list[Sizes]]]] = [
    (CAUSAL, DECODERS),
    (MASKED, ENCODERS),
    (several(CLASSIFIES, TAGS), {"roberta": ENCODERS["roberta"]}),
    ({"type": "seq2seq-lm"}, TRANSLATORS),
    ({"type": "ctc"}, LISTENERS),
    ({"type": "speech-seq2seq"}, WRITERS),
]


def cases() -> Iterator[Any]:
    for task, models in TASKS:
        for model_type, variants in models.items():
            yield pytest.param(task, model_type, variants[0], id=f"{task['type']}-{model_type}")


@pytest.mark.parametrize(("task", "model_type", "sizes"), list(cases()))
def test_every_second_layer_is_that_of_transformers(
    task: dict[str, Any], model_type: str, sizes: Sizes, tmp_path: Path
) -> None:
    wanted = recipe_of(written(tmp_path, model_type, sizes), task)
    off = wanted
    wanted = wanted.model_copy(
        update={"model": wanted.model.model_copy(update={"activation_checkpointing": "selective"})}
    )
    model, planned = made(tmp_path, wanted), architecture_of(wanted)
    if not can_recompute(wanted):
        assert not any(change.key == "model.activation_checkpointing" for change in possible(off, 1))
        with pytest.raises(UserError, match=r"does not support activation checkpointing; set it to off"):
            recompute(model, wanted.model)
        return
    recompute(model, wanted.model)
    flags = [one.gradient_checkpointing for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    expected: list[bool] = []
    for stack, own in zip(planned.stacks, recomputed(planned, 2), strict=True):
        sound = len(convolutions(stack)) if stack.extracts else 0
        expected += [again(2, len(expected) + one) for one in range(sound)]
        expected += own
    assert flags == expected
    assert any(flags)
    assert 0 < share(planned, 2) <= 1
    assert (share(planned, 0), share(planned, 1)) == (0.0, 1.0)
