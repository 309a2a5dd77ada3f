"""Time of a step: matrix products, memory that is crossed, bytes between ranks, launches, and what of them hides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distft.plan.architecture import Architecture, FeedForward, Layers, Stack, Weight
from distft.plan.devices import Device
from distft.plan.duration import (
    CROSSED,
    HIDDEN,
    LAUNCH,
    LAUNCH_GATHERED,
    LINKS,
    REACHED,
    Shape,
    Sizes,
    Work,
    gathered_again,
    step_times,
    work,
)
from distft.recipe.schema import Recipe
from tests.unit.recipes import recipe

GPU = Device("made up", 80 << 30, 1e15, 400e9, 2e12, matmul=0.8, between=25e9)
TRAIN = {"steps": 5, "global_batch": 32, "micro_batch": 1}
NOTHING = Work(0.0, 0.0, 0.0, 3, 0)
SIZE = 10**10


def wanted(stage: int, **engine: object) -> Recipe:
    return recipe(train=TRAIN, engine={"zero_stage": stage, **engine})


def took(stage: int, done: Work, sizes: Sizes, world: int = 8, **engine: object) -> float:
    """On nodes of eight ranks; of four micro-batches with one node."""
    return step_times(wanted(stage, **engine), done, sizes, GPU, world, 8).step


def test_flops_decide_where_all_else_is_free() -> None:
    """Four micro-batches of 0.8e15 FLOPs on a GPU whose matrix products reach 0.8e15 a second; a sixteenth in fp32."""
    done = replace(NOTHING, products=0.8e15)
    assert took(2, done, Sizes(0, 0)) == pytest.approx(4.0 / REACHED)
    assert took(0, done, Sizes(0, 0), dtype="fp32") == pytest.approx(64.0 / REACHED)


def test_memory_is_crossed_beside_matrix_products() -> None:
    """1e12 numbers of 2 bytes in three passes at 2 TB/s."""
    done = replace(NOTHING, products=0.8e15, crossed=1e12)
    assert took(2, done, Sizes(0, 0)) == pytest.approx(4 * (1 / REACHED + 3 * CROSSED))


def test_no_micro_batch_is_shorter_than_its_launches() -> None:
    done = Work(1e9, 0.0, 1e3, 4, 32)
    assert took(2, done, Sizes(0, 0)) == pytest.approx(4 * 4 * 32 * LAUNCH)
    assert took(3, done, Sizes(0, 0)) == pytest.approx(4 * 4 * 32 * LAUNCH_GATHERED)


def test_stage_3_gathers_weights_twice_or_more_in_each_micro_batch() -> None:
    """Weights in bf16 and gradients in fp32, 7/8 of them over 400 GB/s."""
    once = 7 / 8 * SIZE / 400e9 / LINKS
    assert took(3, NOTHING, Sizes(SIZE, SIZE)) == pytest.approx(4 * (4 + 4) * once)
    assert took(3, NOTHING, Sizes(SIZE, SIZE, SIZE // 2)) == pytest.approx(4 * (5 + 4) * once)
    assert took(3, NOTHING, Sizes(SIZE, 0)) == pytest.approx(4 * 4 * once)


def test_the_other_stages_send_weights_once_a_step() -> None:
    """Stage 2 reduces gradients in each micro-batch, stage 1 in the last one."""
    once = 7 / 8 * SIZE / 400e9 / LINKS
    assert took(2, NOTHING, Sizes(SIZE, SIZE)) == pytest.approx((4 * 4 + 2) * once)
    assert took(1, NOTHING, Sizes(SIZE, SIZE), grad_dtype="bf16") == pytest.approx((2 + 2) * once)


def test_between_nodes_all_gpus_of_a_node_send() -> None:
    """Two micro-batches, over 25 GB/s for each of eight GPUs, beside what is sent within nodes."""
    sent = 15 / 16 * 2 * 8 * SIZE
    assert took(3, NOTHING, Sizes(SIZE, SIZE), 16) == pytest.approx(sent / 400e9 / LINKS + sent / 200e9)


def test_a_part_of_sending_hides() -> None:
    sizes = Sizes(SIZE, SIZE)
    sent = took(3, NOTHING, sizes)
    done = replace(NOTHING, products=0.8e15 * 10 * sent / 4)
    assert took(3, done, sizes) == pytest.approx(10 * sent + (1 - HIDDEN) * sent)


def test_what_is_offloaded_is_moved() -> None:
    """Gradients in fp32 and weights in bf16 of this rank's part over PCIe."""
    size = 8 * 10**9
    plain, offloaded = (took(2, NOTHING, Sizes(size, size), offload_optimizer=one) for one in (False, True))
    assert offloaded - plain == pytest.approx(size / 8 * 6 / 25e9)


def of_layers(*weights: Weight, count: int = 4, forward: FeedForward | None = None) -> Architecture:
    layers = Layers(count, "layers", weights, None, forward or FeedForward(10, False, "gelu"), 0)
    return Architecture("made up", (Stack("only", 8, (layers,), ()),), (), 100, True, None)


def test_a_token_meets_some_experts() -> None:
    """Two of four, each with 8 numbers in and 10 out; the head has 8 and 100, and as many products again."""
    forward = FeedForward(10, False, "gelu", 4, 2)
    model = of_layers(Weight("experts", (4, 10, 8), experts=True, layout="bare"), forward=forward)
    found = work(model, 0, True, Shape(3, 5, 0, 15), False)
    assert found.crossed == 15 * (4 * 2 * 18 + 108)
    assert found.products == 15 * (6 * 4 * 2 * 80 + 6 * 800)
    assert (found.passes, found.layers) == (3, 4)


def test_only_layers_larger_than_the_reuse_distance_are_gathered_again() -> None:
    """An eighth of the model stays; at most 1e9 elements."""
    assert gathered_again(of_layers(Weight("w", (10, 10)), count=16)) == 0
    assert gathered_again(of_layers(Weight("w", (10, 10)), count=4)) == 4 * (100 - 50)
    assert gathered_again(of_layers(Weight("w", (1_500_000, 1_000)), count=20)) == 20 * 500_000_000


def test_measured_rates_decide() -> None:
    """0.9e15 FLOPs at 45 % of 1e15 a second, whatever crosses memory; half the GB/s take twice as long."""
    site = replace(GPU, reached=0.45, between=12.5e9)
    done = Work(0.8e15, 0.1e15, 1e12, 3, 1000)
    found = step_times(wanted(2), done, Sizes(0, 0), site, 8, 8)
    assert (found.computing, found.at_peak) == (pytest.approx(8.0), pytest.approx(3.6))
    usual, slow = (step_times(wanted(3), NOTHING, Sizes(SIZE, SIZE), gpu, 16, 8) for gpu in (GPU, site))
    assert (slow.between, slow.within) == (pytest.approx(2 * usual.between), usual.within)
