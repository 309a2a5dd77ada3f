"""Changes that make a recipe fit, with a made-up measure of what one takes."""

from __future__ import annotations

from itertools import product

from distft.engine.configuration import stage
from distft.plan.changes import changed, grid, lowest_stage, possible, ways
from distft.plan.duration import Times
from distft.plan.prediction import Moment, Prediction
from distft.recipe.schema import Recipe
from tests.unit.recipes import recipe


def big(**sections: object) -> Recipe:
    return recipe(train={"steps": 5, "global_batch": 32, "micro_batch": 4}, **sections)


def predict(wanted: Recipe, nodes: int, room: int = 100) -> Prediction:
    """Rows count, twice without recomputation, and what the stage does not shard."""
    again = {"off": 0.0, "selective": 0.5, "full": 1.0}[wanted.model.activation_checkpointing]
    size = wanted.train.micro_batch * wanted.data.row_tokens // 32 * (2 - again)
    states = 80 // (nodes if wanted.engine.zero_stage == 3 else 1)
    moment = Moment("loss", {"activations": int(size), "weights": states})
    times = Times(4.0 / nodes + again, 0.0, 0.0, 0.0)
    return Prediction(nodes, 1, None, [moment], (), room, None, times, 1.0, 1000, 0)


def test_the_cheapest_change_that_is_enough_comes_first_and_none_holds_another() -> None:
    found = ways(big(), 1, lambda wanted, nodes: predict(wanted, nodes, 150))
    assert found[0].overrides == "train.micro_batch=1"
    assert predict(changed(big(), found[0].changes), 1).peak.total == 144
    sets = [set(way.changes) for way in found]
    assert not any(one < other for one in sets for other in sets)
    assert all(way.prediction.fits for way in found)


def test_changes_are_written_as_they_are_copied() -> None:
    overrides = {change.override for change in possible(big(adapter={"type": "lora"}), 2)}
    assert {
        "train.micro_batch=2",
        "train.micro_batch=1",
        "model.activation_checkpointing=selective",
        "model.activation_checkpointing=full",
        "engine.zero_stage=3",
        "engine.offload_optimizer=true",
        "adapter.quantize=nf4",
        "--nodes 4",
        "data.row_tokens=512",
    } <= overrides
    assert not any(one.startswith("adapter") for one in (change.override for change in possible(big(), 1)))
    settled = big(
        engine={"zero_stage": 3, "offload_optimizer": True}, model={"path": "/m", "activation_checkpointing": True}
    )
    keys = {change.key for change in possible(settled, 1)}
    assert keys == {"train.micro_batch", "engine.offload_params", "nodes", "data.row_tokens"}


def test_ways_are_recipes_that_are_not_refused() -> None:
    """4 bits cannot be sharded by stage 3, and each rank needs its part of the global batch."""
    made = big(adapter={"type": "lora"})

    def both(wanted: Recipe, nodes: int) -> Prediction:
        fits = wanted.engine.zero_stage == 3 and getattr(wanted.adapter, "quantize", None) is not None
        return predict(wanted, nodes, 10**9 if fits else 1)

    def spread(wanted: Recipe, nodes: int) -> Prediction:
        return predict(wanted, nodes, 10**9 if nodes == 16 else 1)

    assert ways(made, 1, both) == []
    found = ways(made, 2, spread)
    assert found  # 16 ranks with 2 rows each; with 4 there are not enough
    assert all(changed(made, way.changes).train.micro_batch <= 2 for way in found)


def test_only_what_may_change_does() -> None:
    found = ways(big(), 1, lambda wanted, nodes: predict(wanted, nodes, 150), may_change=lambda key: key == "nodes")
    assert {change.key for way in found for change in way.changes} <= {"nodes"}


def test_nothing_fits_into_nothing() -> None:
    assert ways(big(), 1, lambda wanted, nodes: predict(wanted, nodes, 1)) == []


def test_the_grid_has_what_fits_the_fastest_first() -> None:
    found = grid(big(), [1, 2], lambda wanted, nodes: predict(wanted, nodes, 150))
    speeds = [one.step_seconds for _, one in found]
    assert speeds == sorted(speeds)
    assert all(one.fits for _, one in found)
    assert found[0][0] == {
        "nodes": 2,
        "engine.zero_stage": 3,
        "train.micro_batch": 1,
        "model.activation_checkpointing": "off",
    }
    assert {keys["engine.zero_stage"] for keys, _ in found} == {2, 3}  # bf16 runs none below 2


def test_stages_that_run() -> None:
    assert lowest_stage(big()) == 2
    assert lowest_stage(big(engine={"grad_dtype": "bf16"})) == 1
    assert lowest_stage(big(engine={"dtype": "fp32"})) == 0
    for asked, dtype, grad_dtype in product(range(4), ("bf16", "fp32"), ("bf16", "fp32")):
        one = big(engine={"zero_stage": asked, "dtype": dtype, "grad_dtype": grad_dtype})
        assert max(asked, lowest_stage(one)) == stage(one, 2)  # the engine's rule, which needs torch
