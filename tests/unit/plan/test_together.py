"""What ranks take on CPUs: gradients at their fullest, a process beyond its tensors, and all ranks of a node."""

from __future__ import annotations

from typing import Any

import pytest

from distft.plan.estimate import Estimator
from distft.plan.prediction import Moment, Prediction
from distft.plan.process import ADAPTERS, CODE, HOOKED, IMPORTS, KERNEL, MIB, NARROW, OBJECTS, OWN, TOUCHED, WRITTEN
from distft.plan.states import Sharding, backward_bytes, reduction_bytes
from distft.recipe.schema import Recipe

SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
HALF = {"dtype": "bf16", "grad_dtype": "bf16"}


def planned(
    ranks: int = 1, stage: int = 2, tied: bool = False, architecture: str = "llama", half: bool = False, **adapter: Any
) -> Prediction:
    config = {**SIZES, "num_key_value_heads": 4, "tie_word_embeddings": tied}
    if architecture == "qwen3_moe":
        config |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "head_dim": 64}
    init = {"architecture": architecture, "vocab_size": 8192, "config": config}
    train = {"steps": 3, "global_batch": 2 * ranks, "micro_batch": 2}
    recipe: dict[str, Any] = {"model": {"init": init}, "data": {"train": "/d", "row_tokens": 64}, "train": train}
    recipe["engine"] = {"zero_stage": stage, **(HALF if half else {"dtype": "fp32"})}
    recipe["adapter"] = adapter or {"type": "none"}
    return Estimator(ranks, None).predict(Recipe.model_validate(recipe), 1)


def moment(found: Prediction, name: str) -> Moment:
    return next(one for one in found.moments if one.name == name)


def node(found: Prediction, name: str) -> Moment:
    return next(one for one in found.node_moments if one.name == name)


def test_gradients_are_copied_for_reduction_when_activations_are_gone() -> None:
    found = planned(ranks=2, stage=0)
    elements = moment(found, "start").terms["weights"] // 4
    reduction, layer = moment(found, "reduction"), moment(found, "first layer")
    assert reduction.terms["gradients"] == pytest.approx(8 * elements, rel=1e-4)
    assert layer.terms["gradients"] == pytest.approx(4 * elements * 2 / 3, rel=1e-4)
    assert reduction.terms["activations"] < 0.1 * layer.terms["activations"]


@pytest.mark.parametrize(("stage", "kept"), [(0, (400, 400)), (1, (400, 400)), (2, (200, 600))])
def test_while_backward_goes_on_there_is_one_copy_of_gradients(stage: int, kept: tuple[int, int]) -> None:
    """Beside those of earlier micro-batches that are kept, which under stages 0 and 1 are the same."""
    once, again = (Sharding(2, stage, "fp32", "fp32", accumulates=more) for more in (False, True))
    assert [backward_bytes([50, 50], once, share) for share in (0.0, 0.5, 1.0)] == [0, 200, 400]
    assert tuple(backward_bytes([50, 50], again, share) for share in (0.0, 1.0)) == kept


def test_weights_that_do_not_fit_into_a_bucket_are_reduced_on_the_way() -> None:
    sharding, sizes = Sharding(2, 3, "fp32", "fp32"), [10_000_000] * 4
    assert backward_bytes(sizes, sharding, 0.1) == reduction_bytes(sizes, sharding)


def test_gradients_of_a_tied_embedding_are_there_three_times() -> None:
    found, apart = planned(tied=True), planned(tied=False)
    table, terms = 8192 * 256, moment(found, "embeddings").terms
    elements = moment(found, "start").terms["weights"] // 4
    assert terms["gradients"] == pytest.approx(4 * (elements - table) + 3 * 4 * table, rel=1e-4)
    assert "embeddings" not in [one.name for one in apart.moments]
    assert "embeddings" not in [one.name for one in planned(tied=True, type="lora").moments]


def test_adalora_copies_its_gradients_for_the_update() -> None:
    settings = {"init_r": 8, "target_r": 4, "tinit": 1, "tfinal": 1, "delta_t": 1}
    found = planned(stage=0, type="adalora", **settings)
    terms = moment(found, "update").terms
    assert terms["gradients"] == pytest.approx(terms["moments"] // 2)  # two copies of 4 bytes beside four moments of 4


def test_a_process_has_its_tokenizer_and_kernels_for_each_shape() -> None:
    plain, half = (moment(planned(half=half), "update").terms["process"] for half in (False, True))
    assert plain == IMPORTS + TOUCHED["training"] + 650 * 8192 + (3 * 9 + 3) * OBJECTS[0]
    assert half - plain == CODE + NARROW + 4 * 3 * KERNEL  # attention, gate and up, down, head
    adapted = moment(planned(half=True, type="lora", r=4), "update").terms["process"]
    objects = 3 * 7 * OBJECTS[1]
    assert adapted - plain == ADAPTERS + objects + CODE + NARROW + (4 * 2 + 4 * 3) * KERNEL  # A of two widths, B of two


def test_each_expert_is_given_another_number_of_tokens() -> None:
    plain, half = (moment(planned(architecture="qwen3_moe", half=half), "update") for half in (False, True))
    kernels = (half.terms["process"] - plain.terms["process"] - CODE - NARROW) / KERNEL
    assert kernels == 2 * 3 * 3 * 4 + 3 * 3  # two matrices, three ways, layers x experts; attention, router, head


def test_ranks_share_imports_and_the_file_but_nothing_else() -> None:
    one, four = planned(1, half=True), planned(4, half=True)
    alone, together = node(one, "start").terms, node(four, "start").terms
    assert together["file of weights"] == alone["file of weights"]
    assert together["weights"] == 4 * alone["weights"]
    assert together["imports"] == alone["imports"] == IMPORTS
    assert together["process"] == 4 * alone["process"] == 4 * (OWN["loading"] + 650 * 8192)
    assert four.node == max(found.total for found in four.node_moments) < 4 * four.peak.total


def test_code_of_kernels_is_on_a_node_once() -> None:
    one, four = (node(planned(ranks, half=True), "update").terms["process"] for ranks in (1, 4))
    assert four - CODE == 4 * (one - CODE)


def test_under_stage_3_a_rank_has_more_of_its_own() -> None:
    less, more = (node(planned(stage=stage), "update").terms["process"] for stage in (2, 3))
    assert more - less == WRITTEN + (3 * 9 + 3) * (HOOKED[0] - OBJECTS[0])


def test_under_stage_3_a_tied_embedding_is_gathered_without_a_copy_when_its_gradients_are_there() -> None:
    found = planned(2, stage=3, tied=True)
    assert moment(found, "embeddings").terms["gathered weights"] == 4 * 8192 * 256
    assert moment(found, "loss").terms["gathered weights"] > 2 * 4 * 8192 * 256


def test_without_sharding_each_rank_copies_weights_of_its_own() -> None:
    found = planned(2, stage=0)
    both, fullest = (one.terms["copies for checkpoints"] for one in (node(found, "save"), moment(found, "save")))
    assert both == 12 * moment(found, "start").terms["weights"] // 4
    assert both / 2 < fullest < both
    each = 650 * 8192 + (3 * 9 + 3) * OBJECTS[0]
    assert node(found, "save").terms["process"] == OWN["end"] + OWN["training"] + 2 * each
    assert MIB == 1 << 20
