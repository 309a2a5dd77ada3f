"""What a recipe on a number of ranks comes to: the model's shapes, trained sizes, sharding, and one micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

from distft.plan import duration, quantized
from distft.plan.activations import Activations, activations
from distft.plan.architecture import Architecture, Weight
from distft.plan.changes import lowest_stage
from distft.plan.config import width_of_file
from distft.plan.devices import Device
from distft.plan.evaluation import Writing, evaluation
from distft.plan.loss import Batch, Computing
from distft.plan.operations import Numbers, Update
from distft.plan.placement import Placed, placed
from distft.plan.shapes import architecture_of
from distft.plan.states import Sharding
from distft.plan.trained import Trained, trained, updates
from distft.recipe.adapters import AdaLora
from distft.recipe.schema import Recipe
from distft.recipe.tasks import (
    CTC,
    DPO,
    CausalLM,
    Generation,
    MaskedLM,
    Seq2SeqLM,
    SequenceClassification,
    SpeechSeq2Seq,
)

T = TypeVar("T")
SOUND_PLACE = 20  # milliseconds of speech that become one place of wav2vec2's layers
WHISPER_PLACES = 1500


class Once(Protocol):
    """Finds something for parts of a recipe, once."""

    def __call__(self, find: Callable[[], T], *of: object) -> T: ...


@dataclass(frozen=True, eq=False)
class Case:
    """Everything is found when it is first asked for; what several recipes have in common, once for all."""

    recipe: Recipe
    world: int
    per_node: int
    device: Device | None
    once: Once

    @cached_property
    def model(self) -> Architecture:
        of = self.recipe.model.model_copy(update={"activation_checkpointing": False})
        return self.once(lambda: architecture_of(self.recipe), "model", of, self.recipe.task)

    @cached_property
    def trained(self) -> Trained:
        return self.once(lambda: trained(self.model, self.recipe), "trained", self.recipe.adapter)

    @cached_property
    def sizes(self) -> tuple[list[int], list[int]]:
        """Elements of each trained, and of each frozen weight."""
        return self.once(self._sizes, self.recipe.adapter)

    def _sizes(self) -> tuple[list[int], list[int]]:
        learned = {id(weight) for weight in self.trained.own}
        names = {weight.name for weight in self.trained.own}
        frozen = [w.size for w in self.model.named() if id(w) not in learned and w.name not in names]
        return [weight.size for weight in (*self.trained.own, *self.trained.added)], frozen

    @cached_property
    def placed(self) -> Placed:
        learned, frozen = self.sizes
        return placed(learned, frozen, self.sharding, self.recipe.engine.offload_params, self.device is not None)

    @cached_property
    def four_bit(self) -> Sequence[Weight]:
        """Weights that are kept in 4 bits."""
        return self.once(lambda: quantized.in_four_bits(self.model, self.recipe), "4 bits", self.recipe.adapter)

    @cached_property
    def file_width(self) -> int:
        """Bytes of a number in the files of the base model."""
        return self.once(lambda: width_of_file(self.recipe.model), "file")

    @cached_property
    def stage(self) -> int:
        return max(self.recipe.engine.zero_stage, lowest_stage(self.recipe))

    @cached_property
    def sharding(self) -> Sharding:
        engine, train = self.recipe.engine, self.recipe.train
        return Sharding(
            world=self.world,
            stage=self.stage,
            dtype=engine.dtype,
            grad_dtype=engine.grad_dtype if engine.dtype == "bf16" else "fp32",
            accumulates=train.global_batch > train.micro_batch * self.world,
            offload=engine.offload_optimizer,
            moments=4 if isinstance(self.recipe.adapter, AdaLora) else 2,
        )

    @cached_property
    def shape(self) -> duration.Shape:
        """Of one micro-batch, as full as it can be."""
        recipe = self.recipe
        rows, tokens = recipe.train.micro_batch, recipe.data.row_tokens
        if self.model.positions is not None:
            tokens = min(tokens, self.model.positions) if not isinstance(recipe.task, CTC | SpeechSeq2Seq) else tokens
        written = tokens if isinstance(recipe.task, Seq2SeqLM) else 0
        if isinstance(recipe.task, SpeechSeq2Seq):
            tokens, written = WHISPER_PLACES, self.model.positions or 448
        elif isinstance(recipe.task, CTC):
            tokens = max(1, tokens // SOUND_PLACE)
        elif isinstance(recipe.task, DPO):
            rows *= 2
        return duration.Shape(rows, tokens, written, rows * (written or tokens))

    @cached_property
    def activations(self) -> Activations:
        of = self.recipe.model, self.recipe.adapter, self.recipe.engine.dtype, self.recipe.task, self.shape
        return self.once(self._activations, *of, self.recipe.data.packing)

    def _activations(self) -> Activations:
        batch, how = self._computing
        return activations(self.model, batch, how)

    @cached_property
    def evaluation(self) -> dict[str, int]:
        """Bytes that an evaluation needs beside states."""
        of = self.recipe.model, self.recipe.adapter, self.recipe.engine.dtype, self.recipe.task, self.shape
        return self.once(self._evaluation, *of, self.recipe.data.packing)

    def _evaluation(self) -> dict[str, int]:
        task, (batch, how) = self.recipe.task, self._computing
        writing = Writing(task.beams, task.longest_target + 1) if isinstance(task, Generation) else None
        return evaluation(self.model, batch, how, writing, named=isinstance(task, MaskedLM))

    @cached_property
    def _computing(self) -> tuple[Batch, Computing]:
        shape, numbers = self.shape, Numbers(self.sharding.weight_bytes, "cpu" if self.device is None else "cuda")
        mask = isinstance(self.recipe.task, CausalLM) and self.recipe.data.packing is not False
        places, targets = shape.targets, shape.targets
        if isinstance(self.recipe.task, MaskedLM):
            targets = round(self.recipe.task.mask * places)
        elif isinstance(self.recipe.task, SequenceClassification):
            places = targets = shape.rows
        batch = Batch(shape.rows, shape.tokens, places, targets, shape.written, mask)
        attention = "sdpa" if self.recipe.model.attention == "auto" else self.recipe.model.attention
        again = self.recipe.model.activation_checkpointing
        gathered = not isinstance(self.recipe.task, Generation)
        return batch, Computing(numbers, attention, self.update, again, gathered)

    @cached_property
    def update(self) -> Callable[[str, Weight], Update]:
        return updates(self.trained, self.recipe.adapter)
