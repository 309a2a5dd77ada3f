"""A model's configuration is found without transformers, in a folder or in the cache of the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distft.errors import UserError
from distft.plan.config import read
from distft.plan.shapes import architecture_of
from distft.recipe.schema import Model
from tests.unit.recipes import recipe

FIRST, SECOND = "a" * 40, "b" * 40


def hub(home: Path, commit: str, vocabulary: int, refs: str | None = None) -> None:
    """A model in the cache of the hub, as huggingface_hub lays it out."""
    folder = home / "hub" / "models--owner--name"
    (folder / "snapshots" / commit).mkdir(parents=True)
    config = {"model_type": "llama", "vocab_size": vocabulary}
    (folder / "snapshots" / commit / "config.json").write_text(json.dumps(config))
    if refs is not None:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / refs).write_text(commit)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path


def test_main_is_read_unless_a_revision_is_named(home: Path) -> None:
    hub(home, FIRST, 11, "main")
    hub(home, SECOND, 22, "old")
    assert read(Model(path="owner/name"))["vocab_size"] == 11
    assert read(Model(path="owner/name", revision="old"))["vocab_size"] == 22
    assert read(Model(path="owner/name", revision=SECOND))["vocab_size"] == 22


def test_the_newest_snapshot_is_read_if_main_is_not_there(home: Path) -> None:
    hub(home, FIRST, 11)
    hub(home, SECOND, 22)
    file = home / "hub" / "models--owner--name" / "snapshots" / SECOND / "config.json"
    os.utime(file, (1, 1))
    assert read(Model(path="owner/name"))["vocab_size"] == 11


def test_a_cache_of_its_own_goes_first(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub(tmp_path / "other", FIRST, 33, "main")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other" / "hub"))
    assert read(Model(path="owner/name"))["vocab_size"] == 33


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_model_that_is_not_here_is_to_be_downloaded(home: Path, revision: str | None) -> None:
    with pytest.raises(UserError, match=r"'owner/name' is no local folder and not in the cache .*; download it \("):
        read(Model(path="owner/name", revision=revision))


def test_a_revision_that_is_not_here_is_not_another(home: Path) -> None:
    hub(home, FIRST, 11, "main")
    with pytest.raises(UserError, match="not in the cache of the hub"):
        read(Model(path="owner/name", revision="other"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, r"has no config.json, so it is not a transformers model"),
        ("{", r"config.json cannot be read"),
        ("[]", r"names no model_type; download the model again"),
        ('{"model_type": 3}', r"names no model_type"),
    ],
)
def test_a_folder_without_a_configuration_is_refused(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=says):
        read(Model(path=str(tmp_path)))


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"folder /nowhere does not exist; give a local model or a hub id"):
        read(Model(path="/nowhere"))


def test_a_new_model_has_the_vocabulary_that_its_tokenizer_is_trained_to() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    wanted = recipe(model={"init": {"architecture": "llama", "vocab_size": 300, "config": sizes}})
    architecture = architecture_of(wanted)
    assert architecture.vocabulary == 300
    one = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
    assert architecture.parameters == 2 * 300 * 32 + 2 * one + 32
    assert architecture_of(wanted, vocabulary=270).parameters == 2 * 270 * 32 + 2 * one + 32


def test_a_new_model_that_hears_has_characters() -> None:
    wanted = recipe(model={"init": {"architecture": "wav2vec2", "vocab_size": 2048}}, task={"type": "ctc"})
    assert [one.shape for one in architecture_of(wanted).head] == [(32, 768), (32,)]
    assert architecture_of(wanted, vocabulary=29).vocabulary == 29
