"""Moments of a run: which there are, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distft.plan.devices import device
from distft.plan.estimate import Estimator
from distft.plan.host import PIECE, STRETCH
from distft.plan.placement import pinned
from distft.plan.prediction import GIB, Prediction
from distft.plan.quantized import in_four_bits, size_of
from distft.plan.shapes import architecture_of
from tests.unit.plan.test_estimate import base, wanted
from tests.unit.recipes import recipe

__all__ = ["base"]

LORA: dict[str, Any] = {"type": "lora", "r": 16}
ELEMENTS = 8_030_261_248


def planned(base: Path, gpu: str | None = "H100-80GB", world: int = 8, **sections: Any) -> Prediction:
    return Estimator(world, None if gpu is None else device(gpu), 96 * GIB).predict(wanted(base, **sections), 1)


def terms(found: Prediction, name: str) -> dict[str, int]:
    return next(dict(one.terms) for one in (*found.moments, *found.host_moments) if one.name == name)


def test_an_evaluation_is_there_if_there_are_data_for_it(base: Path) -> None:
    whole = {"loss_chunk": 0}
    without, found = (planned(base, adapter=LORA, engine=whole, data=data) for data in ({}, {"eval": "/e"}))
    assert "evaluation" not in [moment.name for moment in without.moments]
    evaluated = terms(found, "evaluation")
    assert evaluated["logits and loss"] == pytest.approx(8 * 4 * 4096 * 128256, rel=0.001)  # two copies in fp32
    assert evaluated["moments"] == terms(found, "start")["moments"]
    assert sum(evaluated.values()) < found.peak.total
    chunks = terms(planned(base, adapter=LORA, data={"eval": "/e"}), "evaluation")
    assert sum(chunks.values()) < sum(evaluated.values()) - 12e9


def test_an_evaluation_under_stage_3_gathers_weights(base: Path) -> None:
    found = planned(base, engine={"zero_stage": 3}, data={"eval": "/e"})
    assert terms(found, "evaluation")["gathered weights"] > 2 * 128256 * 4096


def test_a_save_copies_masters_and_moments_into_pinned_memory(base: Path) -> None:
    found = planned(base, engine={"zero_stage": 3})
    assert terms(found, "save")["copies for checkpoints"] == -(-12 * ELEMENTS // 8)
    small = planned(base, adapter=LORA)  # 60 MB, which torch rounds up
    assert terms(small, "save")["copies for checkpoints"] == pinned(12 * 41_943_040 // 8) == 1 << 26
    assert "copies for checkpoints" not in terms(found, "steps")
    assert found.host == sum(terms(found, "save").values())
    assert found.node == 8 * found.host


def test_on_a_cpu_a_save_is_a_moment_of_the_ranks_memory(base: Path) -> None:
    found = planned(base, gpu=None, world=2, adapter=LORA)
    assert [moment.name for moment in found.host_moments] == ["export"]
    save = terms(found, "save")
    assert save["copies for checkpoints"] == 12 * 41_943_040 // 2  # of LoRA's weights, a half
    assert "activations" not in save
    assert found.host == found.peak.total


def test_an_export_holds_an_adapter_or_pieces_of_the_model(base: Path) -> None:
    from distft.model import bare, export_pieces

    assert (STRETCH, PIECE) == (bare.STRETCH, export_pieces.PIECE_BYTES)
    adapter = terms(planned(base, world=1, adapter=LORA), "export")
    assert adapter["trained weights"] == 2 * 41_943_040
    assert sum(adapter.values()) < 1 << 30
    one, eight = (terms(planned(base, world=world), "export")["pieces"] for world in (1, 8))
    assert one == 10 * STRETCH
    assert 8 * one < eight < 1 << 30


def test_an_export_of_fused_experts_loads_them_all() -> None:
    """They are read in fp32 and held in bf16. An adapter beside them is written without."""
    init = {"init": {"architecture": "mixtral", "config": {"num_hidden_layers": 1}}}
    for adapter, bytes_each in (({"type": "none"}, 4 + 2), (LORA | {"targets": ["q_proj"]}, 0)):
        made = recipe(model=init, adapter=adapter, train={"steps": 5, "global_batch": 8, "micro_batch": 1})
        export = terms(Estimator(1, device("H100-80GB"), 96 * GIB).predict(made, 1), "export")
        loaded = export.get("file of weights", 0) + export.get("weights", 0)
        assert loaded == bytes_each * architecture_of(made).parameters


def test_ranks_hold_the_model_in_host_memory_before_the_engine_takes_it(base: Path) -> None:
    assert terms(planned(base, adapter=LORA), "start")["weights"] == pytest.approx(2 * ELEMENTS, rel=0.01)
    host = {one.name: one.terms for one in planned(base, adapter=LORA).host_moments}
    assert host["start"]["weights"] == 2 * ELEMENTS
    for less in ({"engine": {"zero_stage": 3}}, {"adapter": LORA | {"quantize": "nf4"}}):
        host = {one.name: one.terms for one in planned(base, **({"adapter": LORA} | less)).host_moments}
        assert "weights" not in host["start"]


def test_offloading_moves_states_to_the_host(base: Path) -> None:
    engine = {"zero_stage": 3, "offload_optimizer": True, "offload_params": True}
    kept, sent = planned(base, engine={"zero_stage": 3}), planned(base, engine=engine)
    for name in ("fp32 masters", "moments", "gradients"):
        assert name not in terms(sent, "start")
        assert terms(sent, "steps")[name] >= terms(kept, "start")[name]
    on_cpu = planned(base, gpu=None, world=2, engine={"zero_stage": 2, "offload_optimizer": True})
    without = planned(base, gpu=None, world=2)
    assert on_cpu.peak.total > without.peak.total  # both are the same memory, and offloading needs more


def test_a_base_in_four_bits_is_unpacked_one_weight_at_a_time(base: Path) -> None:
    found = planned(base, adapter=LORA | {"quantize": "nf4"})
    largest = 14336 * 4096
    assert terms(found, "loss")["unpacked weight"] == 2 * largest + 4 * largest // 64
    assert "unpacked weight" not in terms(found, "update")
    assert size_of(64 * 256) == 64 * 128 + 256 + 4 + 4 * 273


def test_neither_experts_in_one_tensor_nor_what_makes_logits_is_quantised() -> None:
    lora = LORA | {"quantize": "nf4"}
    made = recipe(model={"init": {"architecture": "mixtral", "config": {"num_hidden_layers": 1}}}, adapter=lora)
    names = [one.name for one in in_four_bits(architecture_of(made), made)]
    assert sorted(names) == [f"model.layers.0.self_attn.{part}_proj.weight" for part in "koqv"]
