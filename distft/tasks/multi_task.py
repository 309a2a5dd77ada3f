"""Several tasks over one encoder, a head each. A micro-batch is of one task, the same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distft.data.records import Document
from distft.tasks.protocol import LABEL, Kind, Labels, Setting, Task, Vocabulary

ROWS = "rows"


class MultiKind:
    """Attributes:
    parts: the kinds of the tasks, by name.
    """

    auto = "AutoModel"
    peft = None
    packs = False
    vocabulary: Vocabulary = "encoder"
    whole_head = True

    def __init__(self, parts: Mapping[str, Kind]) -> None:
        self.parts = {name: parts[name] for name in sorted(parts)}

    def head(self, labels: Labels) -> dict[str, Any]:
        return {}  # the encoder by itself has none

    def task(self, setting: Setting, model: Any) -> Multi:
        shared = shared_of(model)
        tasks = {name: kind.task(of_part(setting, name), shared.parts[name]) for name, kind in self.parts.items()}
        return Multi(tasks)


Asked = Kind | MultiKind  # what a recipe can ask for


def of_part(setting: Setting, name: str) -> Setting:
    """What one of the tasks is made from."""
    return replace(setting, labels={LABEL: setting.labels.get(name, [])})


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

    def gradient_checkpointing_enable(self, settings: dict[str, Any]) -> None:
        for part in self.parts.values():
            part.gradient_checkpointing_enable(settings)  # type: ignore[operator]

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
