"""What layers do, beside the weights that they have."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distft.errors import UserError
from distft.plan.architecture import Architecture, Attention, FeedForward
from distft.plan.shapes import architecture_of, goal_of
from tests.models import published
from tests.models.making import CAUSAL, MASKED, recipe_of, written
from tests.models.small_models import DECODERS, ENCODERS, LATENT, TRANSLATORS, Sizes


def small(folder: Path, model_type: str, sizes: Sizes, task: dict[str, Any]) -> Architecture:
    return architecture_of(recipe_of(written(folder, model_type, sizes), task))


def known(folder: Path, config: Sizes, task: dict[str, Any]) -> Architecture:
    (folder / "config.json").write_text(json.dumps(config))
    return architecture_of(recipe_of(folder, task))


def test_llama(tmp_path: Path) -> None:
    found = known(tmp_path, published.LLAMA_70B, CAUSAL)
    [stack] = found.stacks
    [layers] = stack.layers
    assert (stack.role, stack.hidden, stack.depth, layers.norms, layers.dropout) == ("only", 8192, 80, 2, 0.0)
    assert layers.attention == Attention(heads=64, keys=8, size=128, value_size=128, causal=True)
    assert layers.feed_forward == FeedForward(28672, gated=True, activation="silu")
    assert (found.vocabulary, found.positions, found.tied, found.outputs) == (128256, 131072, False, ("lm_head",))


def test_every_second_layer_of_gemma_2_has_a_window(tmp_path: Path) -> None:
    [stack] = known(tmp_path, published.GEMMA_9B, CAUSAL).stacks
    near, far = stack.layers
    assert near.attention == Attention(16, 8, 256, 256, causal=True, window=4096, soft_cap=True)
    assert far.attention == Attention(16, 8, 256, 256, causal=True, window=None, soft_cap=True)
    assert (near.numbers, far.numbers) == (tuple(range(0, 42, 2)), tuple(range(1, 42, 2)))
    assert near.norms == 4


def test_mixtral_sends_a_token_to_two_of_eight(tmp_path: Path) -> None:
    [stack] = known(tmp_path, published.MIXTRAL_8X7B, CAUSAL).stacks
    [layers] = stack.layers
    assert layers.feed_forward == FeedForward(14336, True, "silu", experts=8, chosen=2)
    assert sum(one.size for one in layers.weights if one.experts) == 8 * 3 * 14336 * 4096


def test_deepseek_begins_with_a_dense_layer_and_keeps_values_apart(tmp_path: Path) -> None:
    [stack] = small(tmp_path, "deepseek_v3", LATENT, CAUSAL).stacks
    dense, mixed = stack.layers
    assert (dense.numbers, mixed.numbers) == ((0,), (1, 2))
    assert dense.feed_forward == FeedForward(48, True, "silu")
    assert mixed.feed_forward == FeedForward(8, True, "silu", experts=4, chosen=2, shared=8, exact_router=True)
    assert mixed.attention == Attention(heads=4, keys=4, size=10, value_size=5, causal=True)


def test_falcon_has_one_head_of_keys(tmp_path: Path) -> None:
    [stack] = small(tmp_path, "falcon", DECODERS["falcon"][0], CAUSAL).stacks
    assert stack.layers[0].attention == Attention(4, 1, 8, 8, causal=True)
    assert stack.layers[0].norms == 1


def test_layers_of_albert_share_their_weights(tmp_path: Path) -> None:
    found = small(tmp_path, "albert", ENCODERS["albert"][0], MASKED)
    [layers] = found.stacks[0].layers
    assert (layers.count, layers.copies, found.stacks[0].depth) == (3, 1, 3)
    assert layers.attention == Attention(4, 4, 8, 8, causal=False)


def test_modernbert_looks_half_a_window_to_each_side(tmp_path: Path) -> None:
    [stack] = small(tmp_path, "modernbert", ENCODERS["modernbert"][0], MASKED).stacks
    assert [(one.numbers, one.norms, one.attention.window) for one in stack.layers if one.attention] == [
        ((0,), 1, None),
        ((1, 2), 2, 64),
    ]


def test_dropout_of_encoders(tmp_path: Path) -> None:
    [stack] = small(tmp_path, "distilbert", ENCODERS["distilbert"][0] | {"dropout": 0.3}, MASKED).stacks
    [layers] = stack.layers
    assert layers.dropout == 0.3
    assert layers.attention is not None
    assert layers.attention.dropout == 0.1


def test_t5_looks_over_its_encoder_with_biases(tmp_path: Path) -> None:
    encoder, decoder = small(tmp_path, "t5", TRANSLATORS["t5"][1], {"type": "seq2seq-lm"}).stacks
    assert (encoder.role, encoder.depth, decoder.role, decoder.depth) == ("encoder", 2, "decoder", 3)
    assert encoder.layers[0].attention == Attention(4, 4, 6, 6, causal=False, bias=True, dropout=0.1)
    assert decoder.layers[0].attention == Attention(4, 4, 6, 6, True, over_encoder=True, bias=True, dropout=0.1)
    assert decoder.layers[0].feed_forward == FeedForward(48, True, "gelu_new", dropout=0.1)


def test_whisper_hears_1500_frames(tmp_path: Path) -> None:
    found = known(tmp_path, published.WHISPER_LARGE, {"type": "speech-seq2seq"})
    encoder, decoder = found.stacks
    assert found.positions == 1500
    assert encoder.layers[0].attention == Attention(20, 20, 64, 64, causal=False)
    assert decoder.layers[0].attention == Attention(20, 20, 64, 64, causal=True, over_encoder=True)
    assert (encoder.layers[0].norms, decoder.layers[0].norms) == (2, 3)


def test_tasks_of_other_packages_have_no_plan() -> None:
    part = cast(Any, SimpleNamespace(task=SimpleNamespace(type="ours")))
    with pytest.raises(UserError, match=r"task.type ours: there is no plan for tasks of other packages"):
        goal_of(part)
