"""A run that was begun before a default changed keeps what it was begun with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distft.errors import UserError
from distft.recipe.earlier import EARLIER
from distft.recipe.load import differences, dump, load, load_resolved
from distft.recipe.tasks import TokenClassification
from tests.unit.recipes import recipe


def begun_earlier(folder: Path) -> Path:
    """A resolved recipe of a version without the key."""
    values = yaml.safe_load(dump(recipe()))
    del values["engine"]["grad_dtype"]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_run_begun_under_the_earlier_default_keeps_it(tmp_path: Path) -> None:
    stored = load_resolved(begun_earlier(tmp_path))
    assert stored.engine.grad_dtype == "bf16"
    assert recipe().engine.grad_dtype == "fp32"
    assert differences(stored, recipe()) == []
    # what continues it is written down, and read again as it is
    path = tmp_path / "again.yaml"
    path.write_text(dump(stored))
    assert load_resolved(path) == stored


def test_who_asks_for_the_new_default_is_told_that_it_differs(tmp_path: Path) -> None:
    stored = load_resolved(begun_earlier(tmp_path))
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe()))
    [found] = differences(stored, load(path, ["engine.grad_dtype=fp32"]))
    assert (found.key, found.old, found.new, found.rule) == ("engine.grad_dtype", "bf16", "fp32", "to be allowed")


def test_rows_in_the_order_of_an_earlier_default_keep_it(tmp_path: Path) -> None:
    """It was written down as null."""
    values = yaml.safe_load(dump(recipe()))
    assert values["data"]["group_by_length"] == "step"
    values["data"]["group_by_length"] = None
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    stored = load_resolved(path)
    assert stored.data.group_by_length is None
    assert differences(stored, recipe()) == []
    path.write_text(dump(recipe()))
    [found] = differences(stored, load(path, ["data.group_by_length=step"]))
    assert (found.key, found.old, found.new) == ("data.group_by_length", None, "step")


@pytest.mark.parametrize(("task", "chunk"), [("seq2seq-lm", 0), ("speech-seq2seq", 0), ("causal-lm", 512)])
def test_encoder_decoders_that_were_begun_with_all_logits_keep_them(tmp_path: Path, task: str, chunk: int) -> None:
    path, values = tmp_path / "config.yaml", yaml.safe_load(dump(recipe(task={"type": task})))
    values["engine"]["loss_chunk"] = 512
    path.write_text(yaml.safe_dump(values))
    assert load_resolved(path).engine.loss_chunk == 512
    del values["engine"]["reduce"]
    path.write_text(yaml.safe_dump(values))
    assert load_resolved(path).engine.loss_chunk == chunk


LORA = {"type": "lora"}


@pytest.mark.parametrize("adapter", [{"type": "none"}, LORA, {"type": "adalora"}, {"type": "partial", "train": ["a"]}])
def test_every_such_key_is_taken_as_it_was(tmp_path: Path, adapter: dict[str, object]) -> None:
    """A section of another type may not have it."""
    new = recipe(adapter=adapter, data={"train": "/d", "today": None})
    values = yaml.safe_load(dump(new))
    for section, key in EARLIER:
        values[section].pop(key, None)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    stored = load_resolved(path)
    found = {(s, k): getattr(getattr(stored, s), k) for s, k in EARLIER if hasattr(getattr(stored, s), k)}
    assert found == {place: value for place, value in EARLIER.items() if place in found}
    assert (("adapter", "routers") in found) == (adapter["type"] in ("lora", "adalora"))
    assert found["train", "router_loss"] == 0.0
    assert differences(stored, new) == []
    changed = recipe(
        data={"train": "/d", "today": None}, adapter=LORA | {"routers": False}, train={"steps": 5, "router_loss": 0.1}
    )
    if adapter == LORA:
        rules = {one.key: one.rule for one in differences(stored, changed)}
        assert rules == {"train.router_loss": "to be allowed", "adapter.routers": "refused"}


def test_each_of_several_tasks_is_taken_as_it_was(tmp_path: Path) -> None:
    """With new keys in one of them, which are a difference."""
    tags = {"task": {"type": "token-classification"}, "train": "a.conll"}
    label = {"task": {"type": "sequence-classification"}, "train": "a.jsonl"}
    several = {"type": "multi-task", "tasks": {"tags": tags, "label": label}}
    new = recipe(task=several, data={})
    values = yaml.safe_load(dump(new))
    for key in ("scheme", "words"):
        del values["task"]["tasks"]["tags"]["task"][key]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    stored = load_resolved(path)
    [task] = [part.task for part in stored.parts() if part.name == "tags"]
    assert isinstance(task, TokenClassification)
    assert (task.scheme, task.words) == ("exact", "spaces")
    assert differences(stored, new) == []
    tags["task"]["scheme"] = "auto"
    asked = recipe(task=several, data={})
    [found] = differences(stored, asked)
    assert (found.key, found.old, found.new) == ("task.tasks.tags.task.scheme", "exact", "auto")


def test_a_task_that_cannot_balance_routers_is_told(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for task in ("masked-lm", "dpo"):
        path.write_text(dump(recipe(task={"type": task})))
        assert load(path, ["train.router_loss=0.0"]).train.router_loss == 0.0  # as in a run that was begun before
        with pytest.raises(UserError, match=f"train.router_loss: task.type {task} has no such loss; leave it out"):
            load(path, ["train.router_loss=0.1"])


@pytest.mark.parametrize(("written", "meant"), [("true", "full"), ("false", "off"), ("off", "off"), ("full", "full")])
def test_recomputation_by_its_earlier_values(tmp_path: Path, written: str, meant: str) -> None:
    """A run that was resolved with true or false goes on, and to write the new names is no change."""
    path = tmp_path / "config.yaml"
    path.write_text(dump(recipe()).replace("activation_checkpointing: 'off'", f"activation_checkpointing: {written}"))
    assert f"activation_checkpointing: {written}\n" in path.read_text()
    stored = load_resolved(path)
    assert stored.model.activation_checkpointing == meant
    for name in (written, meant):
        (tmp_path / "recipe.yaml").write_text(dump(recipe()))
        new = load(tmp_path / "recipe.yaml", [f"model.activation_checkpointing={name}"])
        assert differences(stored, new) == []
    [found] = differences(stored, load(tmp_path / "recipe.yaml", ["model.activation_checkpointing=selective"]))
    assert (found.old, found.new, found.rule) == (meant, "selective", "to be allowed")
    path.write_text(dump(stored))
    assert load_resolved(path) == stored
