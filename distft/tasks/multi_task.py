"""Task multi-task: several tasks on one encoder, one head each; a micro-batch holds one task on all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from distft.data.loader import Census
from distft.data.records import Document
from distft.recipe.tasks import TaskName
from distft.tasks.protocol import Learned, ModelSpec, Task, TaskSpec, foreseen
from distft.tasks.shared.lengths import Lengths
from distft.tasks.shared.tokenizer_family import ENCODER

ROWS = "rows"


def whole(specs: Mapping[TaskName, TaskSpec]) -> ModelSpec:
    """What the one model under all tasks of a run is asked for."""
    if None in specs:
        return specs[None].model
    return ModelSpec("AutoModel", ENCODER, tells_documents=True, trains_head=True)


def join_models(models: Mapping[TaskName, Any]) -> Any:
    """One model for all tasks of a run: the model itself if there is one, else models with one encoder in common."""
    return models[None] if None in models else Shared({name: model for name, model in models.items() if name})


def models_of(model: Any, names: Iterable[TaskName]) -> dict[TaskName, Any]:
    """The models that `join_models` has joined."""
    return {name: model if name is None else shared_of(model).parts[name] for name in names}


def join_tasks(tasks: Mapping[TaskName, Task[Any]]) -> Learned[Any]:
    """What is learned in a run: the task itself if there is one, else all of them in turn."""
    return tasks[None] if None in tasks else Multi({name: task for name, task in tasks.items() if name})


def task_of(learned: Learned[Any], name: TaskName) -> Task[Any]:
    """One of the tasks that `join_tasks` has joined."""
    if isinstance(learned, Multi) and name is not None:
        return learned.parts[name]
    return cast(Task[Any], learned)


def view_of(model: Any, name: TaskName) -> Any:
    """The model as one of the tasks calls it."""
    return model if name is None else View(model, name)


class Shared(torch.nn.Module):
    """Models of transformers that have one encoder in common."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        super().__init__()
        # a pooler is of use to some heads and no harm to the others
        encoder = max((part.base_model for part in parts.values()), key=lambda base: len(list(base.parameters())))
        for part in parts.values():
            setattr(part, part.base_model_prefix, encoder)
            part.tie_weights()  # a head for masked tokens shares the embeddings
        self.parts = torch.nn.ModuleDict(parts)
        self.config = encoder.config

    def forward(self, part: str, **inputs: Any) -> Any:
        return self.parts[part](**inputs)

    def get_input_embeddings(self) -> torch.nn.Module:
        """Those of the encoder."""
        found: torch.nn.Module = next(iter(self.parts.values())).get_input_embeddings()  # type: ignore[operator]
        return found

    def activation_checkpointing_enable(self, settings: dict[str, Any], every_n_layers: int = 1) -> None:
        for part in self.parts.values():
            part.activation_checkpointing_enable(settings, every_n_layers=every_n_layers)  # type: ignore[operator]

    def set_attn_implementation(self, name: str) -> None:
        for part in self.parts.values():
            part.set_attn_implementation(name)  # type: ignore[operator]

    def save_pretrained(self, folder: Path) -> None:
        """A folder for each task, which transformers can load by itself."""
        for name, part in self.parts.items():
            part.save_pretrained(folder / name)  # type: ignore[operator]


def shared_of(model: Any) -> Shared:
    """Whatever wraps it."""
    return next(module for module in model.modules() if isinstance(module, Shared))


class View:
    """One of the models of a `Shared`, through whatever wraps that."""

    def __init__(self, model: Any, part: str) -> None:
        self._model, self._part = model, part
        self.module = shared_of(model).parts[part]

    def __call__(self, **inputs: Any) -> Any:
        return self._model(part=self._part, **inputs)


@dataclass(frozen=True)
class MultiBatch:
    """A batch of one task; `others` are empty batches of the others, so that every head is in every graph."""

    part: str
    batch: Any
    rows: int
    others: Mapping[str, Any]

    @property
    def useful_tokens(self) -> int:
        return int(self.batch.useful_tokens)

    @property
    def lengths(self) -> Lengths | None:
        return getattr(self.batch, "lengths", None)


class Multi:
    """Attributes:
    parts: the tasks by name; each sees its own model (`View`).
    """

    def __init__(self, parts: Mapping[str, Task[Any]]) -> None:
        self.parts = parts
        self.counted = [f"{name}.{count}" for name, task in parts.items() for count in (ROWS, *task.counted)]

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> MultiBatch:
        part = rows[0][0].part
        assert part is not None
        others = {name: task.collate([[]], device) for name, task in self.parts.items() if name != part}
        return MultiBatch(part, self.parts[part].collate(rows, device), len(rows), others)

    def counts(self, batch: MultiBatch) -> dict[str, int]:
        found = self.parts[batch.part].counts(batch.batch)
        return {f"{batch.part}.{name}": count for name, count in {ROWS: batch.rows, **found}.items()}

    def foreseen(self, census: Census) -> dict[str, int] | None:
        found = {}
        for name, task in self.parts.items():
            part = census.parts.get(name, Census())
            if (own := foreseen(task, part)) is None:
                return None
            found.update({f"{name}.{count}": number for count, number in {ROWS: part.rows, **own}.items()})
        return found

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Each task has the mean loss of its own targets, weighted by its share of the rows of the step."""
        rows = {name: counts[f"{name}.{ROWS}"] for name in self.parts}
        found = {}
        for name, task in self.parts.items():
            own = {count: counts[f"{name}.{count}"] for count in task.counted}
            share = rows[name] / max(1.0, sum(rows.values()))
            found.update({f"{name}.{loss}": share * factor for loss, factor in task.factors(own).items()})
        return found

    def loss(self, model: Any, batch: MultiBatch) -> dict[str, torch.Tensor]:
        batches = {batch.part: batch.batch, **batch.others}
        return {
            f"{name}.{loss}": value
            for name in self.parts
            for loss, value in self.parts[name].loss(View(model, name), batches[name]).items()
        }
