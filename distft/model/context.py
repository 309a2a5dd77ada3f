"""What a run is made of: its task, its labels, its base model, its tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from distft.data.records import Encoder
from distft.data.sources import Part, training_source
from distft.model import base_model, random_init
from distft.recipe.schema import ModelInit, Recipe
from distft.run.folder import RunDir
from distft.tasks import labels
from distft.tasks.multi_task import Asked, MultiKind, of_part
from distft.tasks.protocol import Kind, Setting
from distft.tasks.registry import kind_of


def make_setting(
    run: RunDir, recipe: Recipe, kind: Asked, once: Callable[[str, Callable[[], Any]], Any], find: bool = False
) -> Setting:
    """What the task of a run is made from.

    Args:
        once: has one rank do a thing of a name, and gives all its result.
        find: labels that no checkpoint knows yet are found again; for the attempt that holds the run.
    """

    def settle() -> dict[str, list[str]]:
        kept = labels.read(run.labels)
        source = partial(training_source, recipe)
        found = labels.of_run(run.labels, recipe, source, begun=not find or run.newest_commit() > 0)
        if kept is not None and kept != found:
            shutil.rmtree(run.base, ignore_errors=True)  # made for other labels
        return found

    found = once("labels", settle)

    @cache
    def processor() -> Any:
        return base_model.load_processor(base_of(run, recipe, kind), recipe.model, kind)

    return Setting(recipe, found, processor)


def base_of(run: RunDir, recipe: Recipe, kind: Asked) -> Path:
    """The local folder of a run's base model."""

    def data() -> list[tuple[Kind, Any]]:
        if isinstance(kind, MultiKind):
            return [(part, training_source(recipe, name)) for name, part in kind.parts.items()]
        return [(kind, training_source(recipe))]

    def make(init: ModelInit, folder: Path) -> None:
        random_init.create(init, kind, labels.read(run.labels) or {}, data(), folder)

    return base_model.locate(recipe.model, run, make)


def encoder_of(kind: Asked, setting: Setting, part: Part) -> Encoder:
    if isinstance(kind, MultiKind):
        assert part is not None  # which of the tasks is settled before
        return kind.parts[part].encoder(of_part(setting, part))
    return kind.encoder(setting)


def setting_of(run: RunDir, recipe: Recipe) -> Setting:
    """What the task of a run is made from, once the run has begun."""
    return make_setting(run, recipe, kind_of(recipe), lambda key, work: work())
