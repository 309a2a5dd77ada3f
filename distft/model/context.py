"""The run context: tasks, labels, base model and tokenizer of a run, built once and handed on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from distft.data.records import Encoder
from distft.data.sources import Source, sources_of
from distft.model import attention, base_model, random_init
from distft.model.skeleton import WHOLE, Places
from distft.recipe.schema import ModelInit, Recipe
from distft.recipe.tasks import TaskName
from distft.run.folder import RunDir
from distft.tasks import labels
from distft.tasks.multi_task import join_tasks, models_of, whole
from distft.tasks.protocol import LABEL, Labels, Learned, ModelSpec, Setting, TaskSpec
from distft.tasks.registry import spec_of, specs_of
from distft.tasks.shared.generation import Decoding

Once = Callable[[str, Callable[[], Any]], Any]
"""Has one rank do a piece of work that has a name, and gives its result to all."""


def alone(name: str, work: Callable[[], Any]) -> Any:
    """`Once` of a process that has no peers."""
    return work()


@dataclass(frozen=True)
class RunContext:
    """Everything is found when it is first asked for, and once.

    Args:
        once: how ranks share a piece of work; all of them must then ask for `base` first, at the same place.
        starts: True for the attempt that holds the run: labels that no checkpoint knows yet are found again.
    """

    run: RunDir
    recipe: Recipe
    once: Once = alone
    starts: bool = False

    def settled(self, recipe: Recipe) -> RunContext:
        """The same run with `auto` settled in its recipe, on which neither labels nor the base model depend."""
        other = replace(self, recipe=recipe)
        other.__dict__.update({name: self.__dict__[name] for name in ("labels", "base") if name in self.__dict__})
        return other

    @cached_property
    def specs(self) -> Mapping[TaskName, TaskSpec]:
        """The tasks by name, in order."""
        return specs_of(self.recipe)

    @cached_property
    def labels(self) -> Mapping[str, Labels]:
        """The content of labels.json.

        Raises:
            UserError: the training data have no labels, or others than the recipe or the run says.
        """

        def settle() -> dict[str, list[str]]:
            kept = labels.read_labels(self.run.labels)
            begun = not self.starts or self.run.newest_commit() > 0
            found = labels.settle(self.run.labels, self.recipe.parts(), begun)
            if kept is not None and kept != found:
                shutil.rmtree(self.run.base, ignore_errors=True)  # made for other labels
            return found

        found: dict[str, list[str]] = self.once("labels", settle)
        return found

    @cached_property
    def base(self) -> Path:
        """The local folder of the base model. Raises UserError if there is none."""
        known = self.labels.get(LABEL, ())

        def make(init: ModelInit, folder: Path) -> None:
            data = [
                (spec_of(part, source.fields), source)
                for part in self.recipe.parts()
                for source in sources_of(part, "train")
            ]
            random_init.create(init, self.model_spec, known, data, folder)

        return Path(self.once("base", lambda: str(base_model.locate(self.recipe.model, self.run, make))))

    @cached_property
    def model_spec(self) -> ModelSpec:
        return whole(self.specs)

    @cached_property
    def processor(self) -> Any:
        """The tokenizer, or whatever else is called processor in transformers. A task may set its language."""
        return self.fresh_processor()

    def fresh_processor(self) -> Any:
        """As it lies in the base model's folder."""
        return base_model.load_processor(self.base, self.recipe.model, self.model_spec.family)

    def setting(self, name: TaskName, decoding: Decoding | None = None) -> Setting:
        known = self.labels.get(labels.key_of(name), ())
        return Setting(self.recipe, known, lambda: self.processor, decoding or Decoding())

    def encoder(self, name: TaskName, source: Source | None = None) -> Encoder:
        """Of the records of a source; None: of those that `predict` is given.

        Raises UserError if the tokenizer is not fit for the task.
        """
        setting = self.setting(name)
        if source is None:
            return self.specs[name].encoder(setting)
        part = next(part for part in self.recipe.parts() if part.name == name)
        data = self.recipe.data.model_copy(update={"template": source.template})
        setting = replace(setting, recipe=self.recipe.model_copy(update={"data": data}))
        return spec_of(part, source.fields).encoder(setting)

    def task(self, model: Any, decoding: Decoding | None = None) -> Learned[Any]:
        """What is learned, over a model of transformers. Raises UserError if the model is not fit for it."""
        models = models_of(model, self.specs)
        return join_tasks(
            {name: spec.build(self.setting(name, decoding), models[name]) for name, spec in self.specs.items()}
        )

    def load_model(self, quantized: bool = False, places: Places = WHOLE) -> Any:
        """The base model, see `base_model.load`."""
        by_document = self.once("attention", lambda: attention.takes_documents(self.run, self.starts))
        return base_model.load(self.base, self.recipe, self.specs, self.labels, quantized, by_document, places)

    def shape(self) -> Any:
        """The model without its weights, see `base_model.shape`."""
        return base_model.shape(self.base, self.recipe, self.specs, self.labels)
