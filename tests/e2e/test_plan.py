"""A run writes down what it expects, and `distft plan` sets beside it what the run has measured."""

from __future__ import annotations

import json

import pytest

from distft.plan import record
from distft.run.folder import RunDir
from tests.e2e.conftest import Made

pytestmark = pytest.mark.long


def test_a_run_is_set_beside_what_it_wrote_down(unbroken: Made) -> None:
    written = record.read(RunDir(unbroken.run).attempt_logs(1))
    assert written is not None
    assert (written.world, written.per_node, written.device) == (2, 2, None)
    assert "evaluation" in [moment.name for moment in written.moments]
    found = json.loads(unbroken.place.run("plan", unbroken.run, "--json").out)
    assert found["peak"] == written.peak.total
    measured = found["measured"]
    assert measured["attempt"] == 1
    assert measured["peak"] >= measured["after_steps"]
    assert 0.7 < measured["peak"] / found["peak"] < 1.7  # what the C library does not return comes on top
    said = unbroken.place.run("plan", unbroken.run).out
    assert "measured on the worst rank of attempt 1: " in said
    again = unbroken.place.run("plan", "recipe.yaml", "train.steps=null", "train.epochs=1").out
    assert "rows, as a run has encoded the data)" in again
