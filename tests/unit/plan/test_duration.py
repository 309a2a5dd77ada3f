"""Time of a step: FLOPs, bytes between ranks, and which of them decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distft.plan.devices import Device
from distft.plan.duration import Shape, step_times
from distft.recipe.schema import Recipe
from tests.unit.recipes import recipe

GPU = Device("made up", 80 << 30, 1e15, 400e9)
TRAIN = {"steps": 5, "global_batch": 32, "micro_batch": 1}


def wanted(stage: int, **engine: object) -> Recipe:
    return recipe(train=TRAIN, engine={"zero_stage": stage, **engine})


def test_flops_decide_where_links_are_fast() -> None:
    """Four micro-steps of 0.9e15 FLOPs at 45 % of 1e15 a second; in fp32 a sixteenth of that."""
    assert step_times(wanted(2), 0.9e15, 10**9, 10**6, GPU, 8, 8).step == pytest.approx(8.0)
    assert step_times(wanted(0, dtype="fp32"), 0.9e15, 10**9, 10**6, GPU, 8, 8).step == pytest.approx(128.0)


def test_bytes_decide_where_weights_are_gathered() -> None:
    """ZeRO 3: weights in bf16 twice and gradients in fp32 in each of four micro-steps, 7/8 of them over 400 GB/s."""
    size = 10**10
    assert step_times(wanted(3), 0.0, size, size, GPU, 8, 8).step == pytest.approx(7 / 8 * 4 * (4 + 4) * size / 400e9)
    # over two nodes: two micro-steps, and 25 GB/s for each GPU of a node
    assert step_times(wanted(3), 0.0, size, size, GPU, 16, 8).step == pytest.approx(15 / 16 * 2 * 8 * size / 200e9)


def test_what_is_offloaded_is_moved() -> None:
    """Gradients in fp32 and weights in bf16 of this rank's part over PCIe."""
    size = 8 * 10**9
    plain, offloaded = (
        step_times(wanted(2, offload_optimizer=one), 0.0, size, size, GPU, 8, 8).step for one in (False, True)
    )
    assert offloaded - plain == pytest.approx(size / 8 * 6 / 25e9)


def test_measured_rates_decide() -> None:
    """Half of 45 % takes twice as long; half the GB/s between nodes, too; links within a node do not matter there."""
    size, slow = 10**10, replace(GPU, reached=0.225, between_nodes=12.5e9, link=300e9)
    for work, world in ((0.9e15, 8), (0.0, 16)):
        usual, measured = (step_times(wanted(3), work, size, size, gpu, world, 8) for gpu in (GPU, slow))
        if work:
            assert measured.computing == pytest.approx(2 * usual.computing)
        else:
            assert measured.sending == pytest.approx(2 * usual.sending)


def test_the_emptiest_rows_that_a_recipe_allows() -> None:
    full = Shape(4, 1024, 0, 4096)
    plain, packed = (recipe(data={"train": "/d", "packing": one}) for one in (None, True))
    assert full.emptiest(plain) == Shape(4, 1, 0, 4)
    assert full.emptiest(packed) == Shape(4, 512, 0, 4)
    heard = recipe(task={"type": "speech-seq2seq"})
    assert Shape(2, 1500, 448, 896).emptiest(heard) == Shape(2, 1500, 1, 2)
