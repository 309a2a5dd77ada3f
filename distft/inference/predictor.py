"""A trained run, ready to predict: records in, outcomes out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distft.checkpoint.state import Stored
from distft.data.records import Broken, Document, Encoded, Record
from distft.errors import UserError
from distft.inference.inputs import trained_on_texts
from distft.metrics.scores import Report
from distft.model import adapters, base_model, export
from distft.model.context import base_of, encoder_of, make_setting
from distft.recipe.load import load_resolved
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.tasks.causal_lm import CausalEncoder
from distft.tasks.multi_task import MultiKind, View
from distft.tasks.protocol import Outcome
from distft.tasks.registry import kind_of
from distft.tasks.shared.generation import Decoding
from distft.tasks.shared.padding import SPLIT
from distft.tasks.shared.position_limits import check_source, source_positions
from distft.training.evaluation import report_of, settled, task_of
from distft.training.reference_pass import recall

NOTES = "notes"  # key of what a record lost before it was predicted
Predicted = Outcome | str  # a text says what is wrong with the record


class Predictor:
    """A checkpoint of a run.

    Args:
        stored: the checkpoint; None: leave the adapter and all training out.
        part: which of several tasks.
    """

    def __init__(
        self, run_dir: Path, stored: Stored | None, part: str | None = None, decoding: Decoding | None = None
    ) -> None:
        run = RunDir(run_dir)
        run.read()
        self.recipe = load_resolved(run.config)
        kind = kind_of(self.recipe)
        part = checked_part(kind, part)
        setting = make_setting(run, self.recipe, kind, lambda key, work: work())
        setting = replace(setting, decoding=decoding or Decoding())
        if stored is None:
            model = export.untuned(run, self.recipe)
        else:
            model = export.tuned(run, self.recipe, stored, adapters.quantized(self.recipe.adapter))
        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
        self._model: Any = model.to(self._device).eval()
        encoder = encoder_of(kind, setting, part)
        if isinstance(encoder, CausalEncoder):
            encoder = replace(encoder, continues=trained_on_texts(self.recipe))
        self._encoder = encoder
        self._limit = source_positions(self._model) if kind.vocabulary == "seq2seq" else None
        # PEFT's own forward does not tell what a model takes
        learned = kind.task(setting, model.get_base_model() if hasattr(model, "get_base_model") else model)
        recall(run, learned)
        self._task = task_of(learned, part)
        if part is not None:
            self._model = View(self._model, part)
        self._batch = self.recipe.train.micro_batch

    def outcomes(self, records: Sequence[Record | Broken], answered: bool) -> list[Predicted]:
        """One a record, in order.

        Args:
            answered: the records hold what is right, and one that does not fit is an error.

        Raises:
            UserError: see above.
        """
        found: dict[int, list[Outcome]] = {}
        wrong: dict[int, str] = {}
        notes: dict[int, Outcome] = {}
        documents: list[Document] = []
        for index, record in enumerate(records):
            try:
                encoded = self._encoded(record, answered)
            except UserError as error:
                if answered:
                    raise
                wrong[index] = str(error)
                continue
            documents += [replace(settled(document), record=index) for document in encoded.documents]
            lost = [note for note in encoded.notes if note != SPLIT]  # pieces are joined again
            notes[index] = {NOTES: lost} if lost and not answered else {}
            if not encoded.documents:
                wrong[index] = f"{record.where}: nothing is left of it to predict"
        by_document: dict[int, Outcome] = {}
        for batch in self._batches(documents):
            with torch.inference_mode():
                outcomes = self._task.predict(self._model, self._task.collate([[d] for d in batch], self._device))
            by_document.update(zip(map(id, batch), outcomes, strict=True))
        for document in documents:  # those of a record in their order
            found.setdefault(document.record, []).append(by_document[id(document)])
        return [wrong[i] if i in wrong else {**self._task.join(found[i]), **notes[i]} for i in range(len(records))]

    def _encoded(self, record: Record | Broken, answered: bool) -> Encoded:
        if isinstance(record, Broken):
            raise UserError(f"{record.where} {record.why}")
        encoded = self._encoder.encode(record, answered)
        for document in encoded.documents:
            check_source(self._limit, document.size)
        return encoded

    def _batches(self, documents: Sequence[Document]) -> list[list[Document]]:
        """Those of similar sizes together: less padding."""
        ordered = sorted(documents, key=lambda document: document.size)
        return [ordered[begin : begin + self._batch] for begin in range(0, len(ordered), self._batch)]

    def answer(self, outcome: Outcome) -> Outcome:
        """What a user is given."""
        return self._task.answer(outcome) | {key: outcome[key] for key in (NOTES, "error") if key in outcome}


def reporter(run: RunDir, recipe: Recipe, part: str | None) -> Callable[[Sequence[Outcome]], Report]:
    """How the outcomes of records are scored. The weights are not loaded for it."""
    kind = kind_of(recipe)
    setting = make_setting(run, recipe, kind, lambda key, work: work())
    with torch.device("meta"):
        shape = base_model.shape(base_of(run, recipe, kind), recipe, kind, setting.labels)
    task = kind.task(setting, shape)
    return partial(report_of, task_of(task, checked_part(kind, part)))


def checked_part(kind: Any, part: str | None) -> str | None:
    """Raises UserError where a task must be named and is not, or the reverse."""
    if isinstance(kind, MultiKind):
        if part not in kind.parts:
            raise UserError(f"--task: this run has the tasks {', '.join(kind.parts)}; name one")
        return part
    if part is not None:
        raise UserError(f"--task {part}: this run has one task only; leave it out")
    return None
