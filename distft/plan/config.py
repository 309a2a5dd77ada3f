"""A model's configuration as it is written, without transformers: in config.json, or in `model.init`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from distft.errors import UserError
from distft.recipe.schema import Model, ModelInit

Config = dict[str, Any]


def read(model: Model) -> Config:
    """The configuration of a recipe's model; what it leaves out has the default of its model type.

    Raises:
        UserError: there is no such model on this machine, or its config.json cannot be read.
    """
    if model.init is not None:
        return of_init(model.init)
    return of_folder(folder_of(model))


def folder_of(model: Model) -> Path:
    """Where the model is on this machine: a folder as it is given, or a snapshot in the cache of the hub.

    Raises:
        UserError: it is not here.
    """
    assert model.path is not None
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.path.startswith((".", "~")):
        raise UserError(f"model.path: folder {folder} does not exist; give a local model or a hub id (owner/name)")
    found = snapshot(model.path, model.revision)
    if found is None:
        raise UserError(
            f"model.path: '{model.path}' is no local folder and not in the cache of the hub ({cache()}); download it "
            f"(hf download {model.path} config.json is enough for a plan), or give a folder"
        )
    return found


def with_snapshot(model: Model, hub: Path | None) -> Model:
    """A model with the folder of its snapshot, if it is in the cache at `hub` and not here."""
    if hub is None or model.path is None or Path(model.path).expanduser().is_dir():
        return model
    found = snapshot(model.path, model.revision, hub)
    return model if found is None else model.model_copy(update={"path": str(found)})


def cache() -> Path:
    """The folder in which huggingface_hub keeps what it has downloaded."""
    if whole := os.environ.get("HF_HUB_CACHE"):
        return Path(whole).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(os.environ.get("HF_HOME", shared)).expanduser() / "hub"


def snapshot(name: str, revision: str | None, hub: Path | None = None) -> Path | None:
    """The folder of a model's snapshot that has a config.json; without a revision that of main, or else the newest.

    Args:
        hub: folder of the cache; default: the one of this process.
    """
    folder = (hub or cache()) / f"models--{name.replace('/', '--')}"
    wanted = revision or "main"
    try:
        commit = (folder / "refs" / wanted).read_text(encoding="utf-8").strip()
    except OSError:
        commit = wanted
    exact = folder / "snapshots" / commit
    if (exact / "config.json").exists():
        return exact
    others = sorted((folder / "snapshots").glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    return others[-1].parent if others and revision is None else None


def of_folder(folder: Path) -> Config:
    """config.json as it is. Raises UserError if there is none, or if it is none of transformers."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"model.path: {folder} has no config.json, so it is not a transformers model") from None
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: {file} cannot be read ({error})") from None
    if not isinstance(found, dict) or not isinstance(found.get("model_type"), str):
        raise UserError(f"model.path: {file} names no model_type; download the model again")
    return found


def of_init(init: ModelInit) -> Config:
    """The configuration of a new model. The tokenizer, which is trained on the data, decides how many tokens there are:
    `vocab_size`, unless the data are so small that they give fewer; so this is the most."""
    return {**init.config, "model_type": init.architecture, "vocab_size": init.vocab_size}


def width_of_file(model: Model) -> int:
    """Bytes of a number in its files, as the configuration says; distft makes new models in fp32."""
    if model.init is not None:
        return 4
    found = read(model)
    return 2 if str(found.get("dtype") or found.get("torch_dtype") or "").endswith("float16") else 4
