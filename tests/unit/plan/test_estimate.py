"""Predictions of whole recipes: figures that are known, and what must never be less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distft.plan.devices import device
from distft.plan.estimate import Estimator
from distft.plan.prediction import GIB, Prediction
from distft.recipe.schema import Recipe
from tests.models.published import LLAMA_8B
from tests.unit.recipes import recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of Llama-3.1-8B, as published."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    return folder


def planned(base: Path, world: int = 8, gpu: str = "H100-80GB", **sections: Any) -> Prediction:
    return Estimator(world, device(gpu)).predict(wanted(base, **sections), 1)


def wanted(base: Path, **sections: Any) -> Recipe:
    model = {"path": str(base), **sections.pop("model", {})}
    train = {"steps": 5, "global_batch": 64, "micro_batch": 4, **sections.pop("train", {})}
    data = {"train": "/d", "row_tokens": 4096, **sections.pop("data", {})}
    return recipe(model=model, train=train, data=data, **sections)


def test_activations_of_8b_lora_are_those_that_were_counted(base: Path) -> None:
    """With FakeTensorMode on real shapes: 132.7 GB for 4 x 4096 tokens, 29.8 GB with activation checkpointing, and
    8.40 GB with chunks of 1,024 logits."""
    lora, masked, whole = {"type": "lora", "r": 16}, {"attention": "sdpa"}, {"loss_chunk": 0}
    found = planned(base, adapter=lora, model=masked, engine=whole)
    assert found.peak.terms["activations"] == pytest.approx(132.7e9, rel=0.01)
    assert found.peak.terms["weights"] == pytest.approx(16.06e9, rel=0.01)
    again = planned(base, adapter=lora, engine=whole, model={**masked, "activation_checkpointing": True})
    alone = {"packing": False}  # as was counted: without a mask
    chunks = planned(base, adapter=lora, data=alone, model={**masked, "activation_checkpointing": True})
    assert chunks.peak.terms["activations"] == pytest.approx(8.40e9, rel=0.03)
    assert again.peak.terms["activations"] == pytest.approx(29.8e9, rel=0.03)
    assert (found.fits, again.fits) == (False, True)
    assert (found.blame, found.peak.name) == ("activations", "loss")
    assert again.step_seconds is not None
    assert found.step_seconds is not None
    assert again.step_seconds > found.step_seconds


def test_every_second_layer_takes_half_of_both(base: Path) -> None:
    """Of what is computed again half; of what layers keep half, and an input for each layer that is computed again."""
    found = {
        again: planned(base, adapter={"type": "lora", "r": 16}, model={"activation_checkpointing": again})
        for again in ("off", "selective", "full")
    }
    off, half, full = (one.peak.terms["activations"] for one in found.values())
    assert half == pytest.approx((off + full) / 2, rel=0.03)
    fast, middle, slow = (one.step_seconds or 0.0 for one in found.values())
    assert middle == pytest.approx((fast + slow) / 2, rel=0.01)
    assert found["off"].useful == 1.0
    assert 1 / found["selective"].useful == pytest.approx((1 + 1 / found["full"].useful) / 2)


def test_auto_is_attention_by_document_where_that_pays(base: Path, tmp_path: Path) -> None:
    """Not in fp32 on a GPU, and not for models that cannot be told where documents begin."""

    def activations(where: Path, attention: str, **more: Any) -> float:
        return planned(where, model={"attention": attention}, **more).peak.terms["activations"]

    fp32 = {"engine": {"dtype": "fp32"}}
    assert activations(base, "auto") == activations(base, "varlen") < 0.95 * activations(base, "sdpa")
    assert activations(base, "auto", **fp32) == activations(base, "sdpa", **fp32)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_8B, "model_type": "stablelm"}))
    assert activations(tmp_path, "auto") == activations(tmp_path, "sdpa")


def test_only_heads_that_can_be_told_the_targets_make_chunks(base: Path) -> None:
    """Not one with an adapter of its own, or one that a preference trains."""

    def logits(**sections: Any) -> int:
        found = planned(base, model={"activation_checkpointing": True}, **sections).peak
        return found.terms["activations"]

    lora, pairs = {"type": "lora", "r": 16}, {"type": "dpo"}
    whole = 10 * 4 * 4096 * 128256
    assert max(logits(), logits(adapter=lora), logits(adapter=lora, task=pairs)) < whole
    assert logits(adapter=lora | {"modules_to_save": ["lm_head"]}) > whole
    assert logits(task=pairs) > whole


def test_states_of_8b_whole_are_those_of_zero(base: Path) -> None:
    """16 bytes of an element of masters, moments and gradients, and 2 of weights, over 8 ranks."""
    found = planned(base, engine={"zero_stage": 3}, model={"activation_checkpointing": True}).moments[0].terms
    elements = 8_030_261_248
    assert found["fp32 masters"] == pytest.approx(4 * elements / 8, rel=0.001)
    assert found["moments"] == pytest.approx(8 * elements / 8, rel=0.001)
    assert found["gradients"] == pytest.approx(4 * elements / 8, rel=0.001)
    assert found["weights"] == pytest.approx(2 * elements / 8, rel=0.01)


def test_four_bits_and_offloading_take_less(base: Path) -> None:
    lora = {"type": "lora", "r": 16}
    whole, quantized = (planned(base, adapter=one).moments[0].total for one in (lora, lora | {"quantize": "nf4"}))
    bits = 4 + 0.127  # an element of all matrices of layers; the second is what section 3 of the paper has for scales
    assert whole - quantized == pytest.approx(6_979_321_856 * (2 - bits / 8), rel=0.0002)
    kept = planned(base, engine={"zero_stage": 3})
    sent = planned(base, engine={"zero_stage": 3, "offload_optimizer": True, "offload_params": True})
    assert sent.peak.total < kept.peak.total - 12 * GIB
    assert sent.host > kept.host + 12 * GIB


def test_on_a_cpu_the_ranks_share_the_memory_of_the_node(base: Path) -> None:
    found = Estimator(2, None, 24 * GIB).predict(wanted(base, adapter={"type": "lora"}), 1)
    assert (found.room, found.fits, found.step_seconds) == (12 * GIB, False, None)
    assert "CUDA" not in found.peak.terms
    assert any("on a CPU" in doubt for doubt in found.doubts)
