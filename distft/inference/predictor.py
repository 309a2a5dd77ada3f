"""A trained model ready to predict: records in, predictions out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distft.checkpoint.state import Stored
from distft.data.bad_records import Bad
from distft.data.records import Broken, Document, Encoded, Encoder, Record
from distft.data.sources import sources_of
from distft.errors import UserError
from distft.inference.groups import Group
from distft.inference.inputs import checked_part, part_of, trained_on_texts
from distft.inference.shared_model import load
from distft.metrics.scores import Report
from distft.model.context import RunContext
from distft.process.console import Console
from distft.process.devices import local_rank, take_device
from distft.recipe.schema import Recipe
from distft.recipe.tasks import TaskName
from distft.run.batch import rows_at_once
from distft.run.commits import recipe_of
from distft.run.folder import RunDir
from distft.tasks.causal_lm import CausalEncoder
from distft.tasks.multi_task import task_of, view_of
from distft.tasks.protocol import Outcome, collated
from distft.tasks.shared.chunked_head import ChunkedHead, Scored
from distft.tasks.shared.generation import Decoding
from distft.tasks.shared.padding import SPLIT
from distft.tasks.shared.position_limits import check_source, source_positions
from distft.training.evaluation import report_of, with_fixed_draw
from distft.training.head_chunks import try_head
from distft.training.reference_pass import recall

NOTES = "notes"  # key of what a record lost before it was predicted
Predicted = Outcome | str | Bad  # a text says why there is nothing to predict


class Predictor:
    """A checkpoint of a run.

    Args:
        stored: the checkpoint; None: leave the adapter and all training out.
        part: which of several tasks.
        held_out: records are those of the recipe's sources, and say of which.
        group: the ranks that hold the model together with this one, and do the same.
    """

    def __init__(
        self,
        run_dir: Path,
        stored: Stored | None,
        part: TaskName = None,
        decoding: Decoding | None = None,
        held_out: bool = False,
        group: Group | None = None,
    ) -> None:
        # before the model: a base in 4 bits is loaded on the current device
        self._device = take_device(local_rank())
        run = RunDir(run_dir)
        run.read()
        self.recipe = recipe_of(run)
        context = RunContext(run, self.recipe)
        part = checked_part(self.recipe, part)
        self._held = load(context, stored, group, self._device)
        model = self._held.model
        if group is not None and group.first and group.number == 0:
            Console(True).say(self._held.how)
        read = sources_of(part_of(self.recipe, part), "eval") if held_out else [None]
        self._encoders = [self._ready(context.encoder(part, source)) for source in read]
        self._limit = source_positions(model) if context.model_spec.family.limit == "source" else None
        # PEFT's own forward does not tell what a model takes
        learned = context.task(model.get_base_model() if hasattr(model, "get_base_model") else model, decoding)
        recall(run, learned)
        self._task = task_of(learned, part)
        self._model: Any = view_of(model, part)
        if self._held.plain and self.recipe.engine.loss_chunk and isinstance(self._task, Scored):
            head = try_head(self.recipe, self._task, model, part, self._device)
            if isinstance(head, ChunkedHead):
                self._task.head = head
        self._held.attend()
        self._batch = rows_at_once(run, self.recipe)

    def outcomes(self, records: Sequence[Record | Broken], answered: bool, refuse: bool = False) -> list[Predicted]:
        """One a record, in order.

        Args:
            answered: the records hold what is right.
            refuse: one that cannot be used is an error.

        Raises:
            UserError: see above.
        """
        found: dict[int, list[Outcome]] = {}
        wrong: dict[int, str | Bad] = {}
        notes: dict[int, Outcome] = {}
        documents: list[Document] = []
        for index, record in enumerate(records):
            try:
                encoded = self._encoded(record, answered)
            except UserError as error:
                if refuse:
                    raise
                wrong[index] = Bad(index, record.where, str(error))
                continue
            documents += [replace(with_fixed_draw(document), record=index) for document in encoded.documents]
            lost = [note for note in encoded.notes if note != SPLIT]  # pieces are joined again
            notes[index] = {NOTES: lost} if lost and not answered else {}
            if not encoded.documents:
                wrong[index] = f"{record.where}: the record is empty after tokenization, so there is nothing to predict"
        by_document = self._predicted(self._batches(documents))
        for document in documents:  # those of a record in their order
            found.setdefault(document.record, []).append(by_document[id(document)])
        return [wrong[i] if i in wrong else {**self._task.join(found[i]), **notes[i]} for i in range(len(records))]

    def _predicted(self, batches: Sequence[Sequence[Document]]) -> dict[int, Outcome]:
        """Outcomes by the identity of their documents; those of other ranks too."""
        found: list[tuple[int, list[Outcome]]] = []
        for number, batch in self._held.share(enumerate(batches)):
            with torch.inference_mode():
                outcomes = self._task.predict(self._model, collated(self._task, [[d] for d in batch], self._device))
            found.append((number, outcomes))
        self._held.attend()
        group = self._held.group
        everyone = group.gathered(found) if group is not None and self._held.own_rows else [found]
        return {
            id(document): outcome
            for rank in everyone
            for number, outcomes in rank
            for document, outcome in zip(batches[number], outcomes, strict=True)
        }

    def _ready(self, encoder: Encoder) -> Encoder:
        if isinstance(encoder, CausalEncoder):
            return replace(encoder, continues=trained_on_texts(self.recipe))
        return encoder

    def _encoded(self, record: Record | Broken, answered: bool) -> Encoded:
        if isinstance(record, Broken):
            raise UserError(f"{record.where} {record.why}")
        encoded = self._encoders[record.source].encode(record, answered)
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


def reporter(run: RunDir, recipe: Recipe, part: TaskName) -> Callable[[Sequence[Outcome]], Report]:
    """How the outcomes of records are scored. The weights are not loaded for it."""
    context = RunContext(run, recipe)
    context.labels, context.base  # noqa: B018 - found before tensors are made on "meta"
    with torch.device("meta"):
        shape = context.shape()
    return partial(report_of, task_of(context.task(shape), checked_part(recipe, part)))
