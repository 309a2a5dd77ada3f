"""Runs whose data, or model, are on a hub: a loopback one, see tests/hub.py."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import EVERY, Ended, Workplace, losses, until_step
from tests.e2e.conftest import Made
from tests.hub import Hub, running

TOKEN = "hf_" + "T0kenOfATest" * 3
DATA = ("data.train=org/data", "data.eval=eval.jsonl")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as made:
        yield made


def environment(hub: Hub, folder: Path, **more: str) -> dict[str, str]:
    home = {"HF_HOME": str(folder / "hf"), "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
    return home | {"XDG_CACHE_HOME": str(folder / "cache"), **more}


def run(place: Workplace, environment: dict[str, str], *args: str | Path) -> Ended:
    with place.start(*args, environment=environment) as command:
        return command.end()


def holds(folder: Path, text: str) -> list[Path]:
    """Files in which a text is, or whose names hold it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text in str(path) or text.encode() in path.read_bytes()]


def test_a_run_stays_with_the_commit_that_it_began_with(unbroken: Made, hub: Hub, tmp_path: Path) -> None:
    """Its losses are those of the run with the same records in a file; the branch has moved on when it continues."""
    place, run_dir = unbroken.place, tmp_path / "run"
    rows = (place.folder / "train.jsonl").read_bytes()
    commit = hub.commit("datasets/org/data", {"train.jsonl": rows}, token=TOKEN)
    known = environment(hub, tmp_path, HF_TOKEN=TOKEN)
    command = ("train", "recipe.yaml", *DATA, "--run-dir", run_dir, "--nproc", "2")
    with place.start(*command, environment=known) as started:
        until_step(started, run_dir, EVERY + 3)
        started.send(signal.SIGTERM)
        ended = started.end(60.0)
    assert ended.code == 75, ended.err
    assert json.loads((run_dir / "hub.json").read_text()) == {"datasets/org/data@main": commit}
    assert f"data.train: org/data at commit {commit}" in ended.out + ended.err
    assert hub.asked("resolve")[0].token == TOKEN
    hub.commit("datasets/org/data", {"train.jsonl": b'{"prompt": "other", "completion": "records"}\n' * 9})
    hub.forget()
    shutil.rmtree(tmp_path / "cache")  # the rows are encoded again
    resumed = run(place, known, *command)
    assert resumed.code == 0, resumed.err
    assert f"org/data at commit {commit}, as this run has settled it (hub.json)" in resumed.out + resumed.err
    assert losses(run_dir) == losses(unbroken.run)
    assert json.loads((run_dir / "final" / "distft.json").read_text())["hub"] == {"datasets/org/data@main": commit}
    assert hub.asked("org/data") == []
    assert [*holds(tmp_path, TOKEN), *holds(place.folder, TOKEN)] == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("faults", "overrides", "told"),
    [
        ([], ["data.revision=v7"], "has no revision 'v7' on the hub; set data.revision to a branch, tag or commit"),
        ([], ["data.train=org/none"], "data 'org/none' is neither local nor a data set that the hub shows"),
        ([], ["model={path: org/none}"], "model.path: 'org/none' is neither local nor a model that the hub shows"),
        ([], ["data.train=org/private"], "set HF_TOKEN to a token that may read it"),
        ([{"pattern": "api", "times": 99, "status": 429}], [], "the hub takes no more requests for some minutes (429)"),
        ([{"pattern": "GET .*resolve", "times": 99, "cut": 0}], [], "the connection broke off"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(
    place: Workplace, hub: Hub, tmp_path: Path, faults: list[dict[str, object]], overrides: list[str], told: str
) -> None:
    hub.commit("datasets/org/data", {"train.jsonl": (place.folder / "train.jsonl").read_bytes()})
    hub.commit("datasets/org/private", {"train.jsonl": b"{}\n"}, token=TOKEN)
    for fault in faults:
        hub.fail(**fault)  # type: ignore[arg-type]
    known = environment(hub, tmp_path)
    for command in (("data", "recipe.yaml"), ("train", "recipe.yaml", "--run-dir", tmp_path / "run")):
        ended = run(place, known, *command, *DATA, *overrides)
        assert ended.code == 2, ended.err
        assert told in ended.sentence
        assert "\n" not in ended.sentence


@pytest.mark.long
def test_without_a_network_it_is_said_what_to_download(place: Workplace, hub: Hub, tmp_path: Path) -> None:
    known = environment(hub, tmp_path)
    hub.close()
    ended = run(place, known, "train", "recipe.yaml", *DATA, "--run-dir", tmp_path / "run")
    assert ended.code == 2
    assert "the hub cannot be reached (ConnectError" in ended.sentence
    assert "hf download org/data --repo-type dataset" in ended.sentence


@pytest.mark.long
def test_what_was_encoded_ahead_is_found_by_a_job_without_internet(place: Workplace, hub: Hub, tmp_path: Path) -> None:
    """Two sources of one data set, each of a revision of its own."""
    rows = (place.folder / "train.jsonl").read_bytes()
    old = hub.commit("datasets/org/data", {"train.jsonl": rows[: rows.index(b"\n", 1000) + 1]}, branch="v1")
    new = hub.commit("datasets/org/data", {"train.jsonl": rows})
    hub.fail("GET .*train.jsonl", cut=200)
    hub.fail("api", status=429, headers={"Retry-After": "1"})
    known, data = environment(hub, tmp_path), "data.train=[{path: org/data, revision: v1}, org/data]"
    encoded = run(place, known, "encode", "recipe.yaml", data)
    assert encoded.code == 0, encoded.err
    hub.forget()
    trained = ("train", "recipe.yaml", data, "train.steps=2", "--run-dir", tmp_path / "run")
    ended = run(place, known | {"HF_HUB_OFFLINE": "1"}, *trained)
    assert ended.code == 0, ended.err
    assert hub.asked() == []
    kept = json.loads((tmp_path / "run" / "hub.json").read_text())
    assert kept == {"datasets/org/data@v1": old, "datasets/org/data@main": new}
    assert "main is taken as it was known last" in ended.err + (
        tmp_path / "run" / "logs" / "attempt-001" / "rank-0.log"
    ).read_text(errors="replace")


@pytest.mark.long
def test_a_base_model_of_the_hub_stays_what_it_was(full: Made, hub: Hub, tmp_path: Path) -> None:
    model, run_dir, known = full.run / "final", tmp_path / "run", environment(hub, tmp_path)
    commit = hub.commit("models/org/model", model)
    command = ("train", "recipe.yaml", "model={path: org/model}", "--run-dir", run_dir, "checkpoint.every=5")
    with full.place.start(*command, environment=known) as started:
        until_step(started, run_dir, 7)
        started.send(signal.SIGTERM)
        assert started.end(60.0).code == 75
    hub.commit("models/org/model", {"config.json": b"{}"})
    resumed = run(full.place, known, *command)
    assert resumed.code == 0, resumed.err
    assert json.loads((run_dir / "hub.json").read_text()) == {"models/org/model@main": commit}
    assert (run_dir / "final" / "adapter_config.json").exists()
