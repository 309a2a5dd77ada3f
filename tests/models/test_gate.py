"""The gate before a job is sent: it refuses what cannot fit, warns of what may not, and else is not in the way."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.plan_cases import Case, recipe_of
from distft.plan.devices import device, unknown
from distft.plan.estimate import Estimator
from distft.plan.gate import Verdict, certain, judge
from distft.plan.place import Place
from distft.plan.prediction import GIB
from distft.plan.process import IMPORTS
from distft.recipe.schema import Recipe
from tests.models.published import LLAMA_8B
from tests.unit.recipes import recipe

ROOT = Path(__file__).parents[2]
A100 = device("A100-80GB")
LORA = {"type": "lora"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return tmp_path


def wanted(base: Path, **sections: Any) -> Recipe:
    model = {"path": str(base), **sections.pop("model", {})}
    train = {"steps": 5, "global_batch": 64, "micro_batch": 16, **sections.pop("train", {})}
    data = {"train": "/d", "row_tokens": 4096, **sections.pop("data", {})}
    return recipe(model=model, train=train, data=data, **sections)


def copied(sentence: str) -> list[str]:
    """The changes that a sentence gives to copy."""
    return re.findall("`([^`]+)`", sentence)


def test_states_that_are_too_large_are_refused_whatever_the_rows_hold(base: Path) -> None:
    found = judge(wanted(base), Place(1, 1, device("A30")))
    assert found.warning is None
    assert found.refusal is not None
    said = re.fullmatch(
        r"it cannot fit: a rank takes at least ([\d.]+) GiB \(update\), most of it moments \(([\d.]+) GiB\), "
        r"and may use 23\.5 GiB \(the memory of A30-24GB\); no change of up to three keys makes it fit",
        found.refusal,
    )
    assert said is not None, found.refusal
    assert float(said[1]) > 16 * 8.03e9 / GIB  # weights in bf16, masters, moments, gradients in bf16 at least
    assert float(said[2]) == pytest.approx(8 * 8.03e9 / GIB, rel=0.01)


@pytest.mark.parametrize(("packing", "refuses"), [(None, False), (False, False), (True, True)])
def test_activations_are_sure_only_where_rows_are_filled(base: Path, packing: bool | None, refuses: bool) -> None:
    asked = wanted(base, adapter=LORA, data={"packing": packing})
    found = judge(asked, Place(1, 4, A100))
    assert (found.refusal is not None, found.warning is not None) == (refuses, not refuses)
    said = found.refusal or found.warning
    assert said is not None
    assert "most of it activations" in said
    ways = copied(said)
    assert len(ways) == 2
    for way in ways:  # what is to be copied lets it pass without a word
        changes = dict(pair.split("=") for pair in way.split())
        sections = {section: {} for section in ("train", "model", "engine", "data")} | {"data": {"packing": packing}}
        for key, value in changes.items():
            section, name = key.split(".")
            sections[section][name] = yaml.safe_load(value)
        assert judge(wanted(base, adapter=LORA, **sections), Place(1, 4, A100)) == Verdict(), way


def test_what_is_left_open_is_settled_first(base: Path) -> None:
    """Sixteen rows do not fit, a few do; and what takes least may be too much."""
    auto = {"model": {"activation_checkpointing": "auto"}, "train": {"micro_batch": "auto"}}
    assert judge(wanted(base, adapter=LORA), Place(1, 4, A100)).warning is not None
    assert judge(wanted(base, adapter=LORA, **auto), Place(1, 4, A100)) == Verdict()
    assert judge(wanted(base, **auto), Place(1, 1, device("A30"))).refusal is not None


def test_less_than_the_plans_own_error_is_no_reason_to_refuse(base: Path) -> None:
    asked = wanted(base, model={"activation_checkpointing": True}, train={"micro_batch": 1})
    least = max(one.total for one in Estimator(1, A100, None, True).predict(asked, 1).moments)
    for share, refuses in ((1.03, False), (1.10, True)):
        found = judge(asked, Place(1, 1, replace(A100, memory=int(least / share))))
        assert (found.refusal is not None, found.warning is not None) == (refuses, not refuses), share
    most = Estimator(1, A100).predict(asked, 1).peak.total
    assert judge(asked, Place(1, 1, replace(A100, memory=most))) == Verdict()


@pytest.mark.parametrize(
    "sections",
    [
        {"adapter": LORA | {"quantize": "nf4"}, "data": {"packing": True}},
        {"engine": {"zero_stage": 3, "offload_optimizer": True, "offload_params": True}, "data": {"packing": True}},
    ],
    ids=["quantized", "offloaded"],
)
def test_what_was_never_compared_is_not_refused(base: Path, sections: dict[str, Any]) -> None:
    found = judge(wanted(base, **sections), Place(1, 4, A100))
    assert found.refusal is None
    assert found.warning is not None
    assert found.warning.startswith("it may not fit: with full rows a rank takes up to ")


def test_ranks_on_cpus_share_the_memory_that_a_job_gets(base: Path) -> None:
    small = wanted(base, adapter=LORA, train={"micro_batch": 1}, data={"row_tokens": 64})
    assert judge(small, Place(1, 2, memory=200 * GIB)) == Verdict()
    refused = judge(small, Place(1, 8, memory=64 * GIB)).refusal
    assert refused is not None
    assert "and may use 8.0 GiB (its part of a node's memory)" in refused
    # a file that is only mapped is taken back by the kernel, so 15 GiB of weights beside 30 GiB of it fit into 24
    found = judge(small, Place(1, 1, memory=24 * GIB))
    assert found.refusal is None
    assert found.warning is not None


def test_host_memory_of_ranks_on_gpus_is_warned_of(base: Path) -> None:
    asked = wanted(base, model={"activation_checkpointing": True}, train={"micro_batch": 1})
    assert judge(asked, Place(1, 4, A100)) == Verdict()
    assert judge(asked, Place(1, 4, A100, 480 * GIB)) == Verdict()
    warning = judge(asked, Place(1, 4, A100, 64 * GIB)).warning
    assert warning is not None
    assert warning.startswith("host memory may not suffice: a node takes up to ")


def test_where_nothing_is_known_of_the_place_nothing_is_said(base: Path) -> None:
    for place in (Place(1, 1), Place(1, 1, unknown("v100"), 64 * GIB)):
        assert judge(wanted(base), place) == Verdict()


def test_no_run_took_less_than_what_is_called_certain() -> None:
    """Runs on CPUs, each beside the least that its recipe can take."""
    measured = (ROOT / "docs" / "results" / "plan-measured.jsonl").read_text().splitlines()
    runs = [run for run in map(json.loads, measured) if not run["case"]["name"].startswith("nothing")]
    assert len(runs) > 20
    for run in runs:
        estimator = Estimator(run["case"]["ranks"], None, emptiest=True)
        least = max(one.total for one in certain(estimator.predict(recipe_of(Case(**run["case"])), 1)))
        took = max(one["hwm"] for one in run["processes"] if "rank" in one["name"])
        assert least <= took - IMPORTS, run["case"]["name"]


def test_an_unknown_model_type_starts_no_process(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "config.json").write_text(json.dumps(LLAMA_8B | {"model_type": "nonesuch"}))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    found = judge(wanted(base), Place(1, 1, A100))
    assert found == Verdict(
        warning="whether it fits in memory is not known: its model type is not in the plan's table; distft plan looks "
        "into it"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no config.json"),
        ("{", "cannot be read"),
        ("[" * 100_000, "the plan has failed (RecursionError: "),
        (json.dumps(LLAMA_8B | {"num_attention_heads": 0}), "has sizes that make no llama model"),
        (json.dumps(LLAMA_8B | {"num_hidden_layers": 100_000}), "the model has 100,000 layers"),
    ],
    ids=["missing", "cut off", "deep", "no heads", "very deep model"],
)
def test_what_goes_wrong_is_one_line_and_no_refusal(base: Path, text: str | None, said: str) -> None:
    (base / "config.json").unlink() if text is None else (base / "config.json").write_text(text)
    found = judge(wanted(base), Place(1, 1, A100))
    assert found.refusal is None
    assert found.warning is not None
    assert said in found.warning
    assert "\n" not in found.warning


def test_an_adapter_that_trains_nothing_is_named(base: Path) -> None:
    found = judge(wanted(base, adapter=LORA | {"targets": ["nonesuch"]}), Place(1, 1, A100))
    assert found.warning is not None
    assert "adapter: it trains no weight of this model" in found.warning


def test_the_hubs_cache_of_the_nodes_is_looked_into(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(base / "none"))
    folder = base / "hub" / "models--org--name" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (base / "config.json").rename(folder / "config.json")
    asked = wanted(base, model={"path": "org/name"})
    found = [judge(asked, Place(1, 1, device("A30"), hub=hub)) for hub in (base / "hub", None)]
    assert [one.refusal is not None for one in found] == [True, False]


def test_several_tasks_are_planned_by_what_they_share(tmp_path: Path) -> None:
    config = {"model_type": "bert", "hidden_size": 4096, "num_hidden_layers": 48, "num_attention_heads": 32}
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 16384, "vocab_size": 30522}))
    parts = {
        name: {"task": {"type": "sequence-classification", "labels": ["a", "b"]}, "train": "/d"} for name in ("a", "b")
    }
    asked = recipe(
        model={"path": str(tmp_path)},
        task={"type": "multi-task", "tasks": parts},
        data={"train": None},
        train={"steps": 1},
    )
    assert judge(asked, Place(1, 1, device("H200"))).refusal is not None
    assert judge(asked, Place(4, 8, device("H200"))).refusal is None


def test_an_evaluation_may_be_of_fewer_rows_than_a_micro_batch(base: Path) -> None:
    asked = wanted(base, data={"eval": "/d"}, adapter=LORA)
    least = Estimator(1, A100, emptiest=True).predict(asked, 1)
    assert "evaluation" in [one.name for one in least.moments]
    assert "evaluation" not in [one.name for one in certain(least)]
