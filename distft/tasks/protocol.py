"""What the rest of the program asks of a task, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch

from distft.data.records import Document, Encoder, Record
from distft.metrics.scores import Report
from distft.recipe.schema import Recipe
from distft.tasks.shared.generation import Decoding

Labels = Mapping[str, Sequence[str]]  # the label set of a task by its name; LABEL where there is one task
Vocabulary = Literal["decoder", "encoder", "seq2seq", "characters", "speech"]
LABEL = "label"
Outcome = dict[str, Any]  # what was predicted for a document and, where it is known, what is right; JSON can hold it


class Batch(Protocol):
    """One micro-batch, ready for the model."""

    @property
    def useful_tokens(self) -> int:
        """Tokens that are not padding."""


B = TypeVar("B", bound=Batch)


class Learned(Protocol[B]):
    """A loss is a sum and a count, by name. Counts are summed over the whole global batch before they divide,
    so packing, accumulation and the number of ranks do not change the mathematics."""

    @property
    def counted(self) -> Sequence[str]:
        """Names of all counts, in the order in which ranks add them up."""

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> B:
        """A micro-batch from the documents of its rows. A row without documents is padding."""

    def counts(self, batch: B) -> dict[str, int]:
        """How many targets each loss sums over."""

    def loss(self, model: Any, batch: B) -> dict[str, torch.Tensor]:
        """Each loss as a SUM over its targets, scalar fp32; never a mean, never the model's own `.loss`."""

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        """What each sum is multiplied by in the loss of a step, from the counts of the whole global batch."""


class Task(Learned[B], Protocol[B]):
    """What is learned and predicted for one kind of record."""

    def predict(self, model: Any, batch: B) -> list[Outcome]:
        """One outcome a document, in their order; nothing for padding. Called without gradients. Every rank calls it
        as often as the others."""

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        """Scores over all records, each the outcome of one document or, where there were several, `join` of them."""

    def join(self, parts: Sequence[Outcome]) -> Outcome:
        """The outcome of one record from those of its documents."""

    def answer(self, outcome: Outcome) -> Outcome:
        """What a user is given for a record: its prediction, with scores."""


def mean(counts: Mapping[str, float]) -> dict[str, float]:
    """The factors of a task whose losses are means over all their targets."""
    return {name: 1.0 / max(count, 1.0) for name, count in counts.items()}


def only(parts: Sequence[Outcome]) -> Outcome:
    """`join` of a task that makes one document of a record."""
    [outcome] = parts
    return outcome


def named(labels: Sequence[str]) -> dict[str, Any]:
    """What transformers' configuration of a model says of its labels."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


@dataclass(frozen=True)
class Setting:
    """What a task is made from, beside a model.

    Attributes:
        processor: gives the tokenizer, or whatever else is called processor in transformers; slow at the first call.
    """

    recipe: Recipe
    labels: Labels
    processor: Callable[[], Any]
    decoding: Decoding = field(default_factory=Decoding)


class AnyKind(Protocol):
    """What is known of a task, or of several over one model, before there is a model."""

    @property
    def auto(self) -> str:
        """transformers' class for such models."""

    @property
    def peft(self) -> str | None:
        """The task type in PEFT's words; None: it knows no such."""

    @property
    def packs(self) -> bool:
        """Whether documents can share one sequence, kept apart by positions."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Which tokenizer `model.init` makes."""

    @property
    def whole_head(self) -> bool:
        """Whether, with an adapter, what the model has beside the transformer proper is trained whole."""

    def head(self, labels: Labels) -> dict[str, Any]:
        """What transformers' configuration of a model says of its head."""

    def task(self, setting: Setting, model: Any) -> Learned[Any]:
        """Raises UserError where the model is not fit for it."""


class Kind(AnyKind, Protocol):
    """The same of one task."""

    @property
    def labelled(self) -> bool:
        """Whether it tells labels apart."""

    @property
    def exclusive(self) -> bool:
        """Whether what is labelled has one of them, so that there must be two."""

    def texts(self, record: Record) -> Iterator[str]:
        """The texts of a record, to train a tokenizer on."""

    def labels(self, record: Record) -> Iterator[str]:
        """All labels in a record; asked for where the task is `labelled`."""

    def extend(self, model: Any, labels: Labels) -> None:
        """Add to a model of transformers what the task needs beside it: modules with parameters, before any adapter."""

    def encoder(self, setting: Setting) -> Encoder:
        """Raises UserError where the tokenizer is not fit for it."""

    def task(self, setting: Setting, model: Any) -> Task[Any]:
        """Raises UserError where the model is not fit for it."""
