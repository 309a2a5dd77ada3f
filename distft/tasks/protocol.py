"""The interface of a task: all that the rest of the program needs from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from distft.data.loader import Census
from distft.data.pieces import Cut
from distft.data.records import Document, Encoder, Record
from distft.metrics.scores import Report
from distft.recipe.schema import Data, Recipe
from distft.tasks.shared.generation import Decoding
from distft.tasks.shared.tokenizer_family import TokenizerFamily
from distft.tasks.shared.transfer import moved

Labels = Sequence[str]
LABEL = "label"  # the field of a record, and the name of the label set in labels.json if there is one task
MICRO_BATCHES = "micro_batches"  # the count of a term that every forward pass has
Outcome = dict[str, Any]  # what was predicted for a document and, where it is known, what is right; JSON can hold it


class Batch(Protocol):
    """One micro-batch, ready for the model. If it has `lengths` too (`Lengths`), its FLOPs are counted."""

    @property
    def useful_tokens(self) -> int:
        """Tokens that are not padding."""


B = TypeVar("B", bound=Batch)


class Learned(Protocol[B]):
    """A loss is a sum and a count, by name. Counts are summed over the whole global batch before they divide,
    so packing, accumulation and the number of ranks do not change the mathematics. What each name adds to the loss of
    a step is recorded as "loss.NAME".

    A term that is no sum over the targets has a name and a count of its own. A penalty on each forward pass, such as
    the balance of a router, counts `MICRO_BATCHES`: 1 per micro-batch, padding included, so its factor is its weight
    divided by the number of micro-batches of the global batch. Distillation on all tokens counts all tokens.
    """

    @property
    def counted(self) -> Sequence[str]:
        """Names of all counts, in the order in which ranks add them up."""

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> B:
        """A micro-batch from the documents of its rows. A row without documents is padding. What is a dataclass, as all
        of ours, is made on the CPU and moved in one piece, see `collated`."""

    def counts(self, batch: B) -> dict[str, int]:
        """How many targets each loss sums over."""

    def loss(self, model: Any, batch: B) -> dict[str, torch.Tensor]:
        """Each loss as a SUM over its targets, scalar fp32; never a mean, never the model's own `.loss`."""

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        """What each sum is multiplied by in the loss of a step, from the counts of the whole global batch."""


@runtime_checkable
class Foresees(Protocol):
    """What a task may have besides, if its counts follow from the index of its corpus: then no rank has to ask the
    others before a step begins."""

    def foreseen(self, census: Census) -> dict[str, int] | None:
        """The sum of `counts` over all micro-batches of a step. None: only the batches tell."""


@dataclass(frozen=True)
class Each:
    """The parts of a loss, without gradients: of each target its loss, fp32 [N], and the document of the batch that it
    is of, int64 [N]."""

    losses: torch.Tensor
    owners: torch.Tensor


@runtime_checkable
class TellsEach(Protocol):
    """What a task may have besides, so that a run records the loss of each of several sources."""

    def loss_and_each(self, model: Any, batch: Any) -> tuple[dict[str, torch.Tensor], Each]:
        """What `loss` gives, to the bit, and the parts of its first term."""


def foreseen(task: Learned[Any], census: Census) -> dict[str, int] | None:
    """As far as the task can."""
    return task.foreseen(census) if isinstance(task, Foresees) else None


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


def collated(task: Learned[B], rows: Sequence[Sequence[Document]], device: torch.device) -> B:
    """The micro-batch of these rows on a device. One that is no dataclass takes its tensors there itself."""
    if device.type == "cpu":
        return task.collate(rows, device)
    batch = task.collate(rows, torch.device("cpu"))
    if not is_dataclass(batch):
        return task.collate(rows, device)
    there: B = moved(batch, device)
    return there


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
    """What one task is made from, beside a model.

    Attributes:
        labels: its label set, in order; empty if it has none.
        processor: gives the tokenizer, or whatever else is called processor in transformers; slow at the first call.
    """

    recipe: Recipe
    labels: Labels
    processor: Callable[[], Any]
    decoding: Decoding = field(default_factory=Decoding)


def no_head(labels: Labels) -> dict[str, Any]:
    return {}


def leave_as_it_is(model: Any, labels: Labels) -> None:
    pass


@dataclass(frozen=True)
class ModelSpec:
    """What a task asks of its model.

    Attributes:
        auto_class: transformers' class for such models.
        peft_task: the task type in PEFT's words; None: it knows no such type.
        packs: documents can share one sequence, kept apart by positions.
        tells_documents: its batches can tell attention where documents begin.
        trains_head: with an adapter, what the model has beside the transformer proper is trained whole.
        head: what transformers' configuration of the model says of its head.
        extend: adds to a model what the task needs beside it, modules with parameters, before any adapter.
    """

    auto_class: str
    family: TokenizerFamily
    peft_task: str | None = None
    packs: bool = False
    tells_documents: bool = False
    trains_head: bool = False
    head: Callable[[Labels], dict[str, Any]] = no_head
    extend: Callable[[Any, Labels], None] = leave_as_it_is


def accept(seen: Mapping[str, str]) -> None:
    pass


def say_nothing(labels: Labels) -> str | None:
    return None


@dataclass(frozen=True)
class LabelSpec:
    """How a task finds its labels.

    Attributes:
        find: all labels in a record.
        exclusive: each example has exactly one label, so that there must be two.
        check: is given all labels and where each came first; raises UserError if they are not fit for the task.
        describe: what the log says of a label set; None: nothing.
    """

    find: Callable[[Record], Iterable[str]]
    exclusive: bool = True
    check: Callable[[Mapping[str, str]], None] = accept
    describe: Callable[[Labels], str | None] = say_nothing


@dataclass(frozen=True)
class TaskSpec:
    """A task before there is a model: all that the rest of the program has to know about it.

    Attributes:
        texts: the texts of a record, to train a tokenizer on.
        encoder: turns records into documents; raises UserError if the tokenizer is not fit for it.
        build: the task over a model, whose weights may have no values yet; raises UserError if it is not fit for it.
        labels: None if it tells no labels apart.
        input_field: the field of a record that `predict` is given alone: a text, or the path of a recording.
        takes_decoding: `predict` chooses words as `Decoding` says.
        cut: how it cuts documents that are longer than a row, if its encoder `Cuts`; None: its documents fit.
    """

    model: ModelSpec
    texts: Callable[[Record], Iterable[str]]
    encoder: Callable[[Setting], Encoder]
    build: Callable[[Setting, Any], Task[Any]]
    labels: LabelSpec | None = None
    input_field: str = "text"
    takes_decoding: bool = False
    cut: Callable[[Data], Cut] | None = None
