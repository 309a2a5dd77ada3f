"""What a recipe on a number of ranks comes to: the model's shapes, trained sizes, sharding, and one micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

from distft.errors import UserError
from distft.plan import duration, quantized
from distft.plan.activations import Activations, activations
from distft.plan.architecture import Architecture, Weight
from distft.plan.changes import lowest_stage
from distft.plan.config import width_of_file
from distft.plan.devices import Device
from distft.plan.evaluation import Writing, evaluation
from distft.plan.loss import Computing, head_weight
from distft.plan.microbatch import Given, attention, emptiest, given, shape_of
from distft.plan.operations import Numbers, Update
from distft.plan.placement import Placed, placed
from distft.plan.shapes import architecture_of
from distft.plan.states import Sharding
from distft.plan.trained import PREFIX, Trained, trained, updates
from distft.recipe import reduction
from distft.recipe.adapters import AdaLora
from distft.recipe.batch import EVERY
from distft.recipe.schema import Recipe
from distft.recipe.tasks import DPO, CausalLM, Generation, MaskedLM

T = TypeVar("T")


class Once(Protocol):
    """Finds something for parts of a recipe, once."""

    def __call__(self, find: Callable[[], T], *of: object) -> T: ...


@dataclass(frozen=True, eq=False)
class Case:
    """Everything is found when it is first asked for; what several recipes have in common, once for all.

    Attributes:
        emptiest: rows hold as little as they can (`microbatch.emptiest`), not as much.
    """

    recipe: Recipe
    world: int
    per_node: int
    device: Device | None
    once: Once
    emptiest: bool = False

    @cached_property
    def model(self) -> Architecture:
        of = self.recipe.model.model_copy(update={"activation_checkpointing": "off"})
        return self.once(lambda: architecture_of(self.recipe), "model", of, self.recipe.task)

    @cached_property
    def trained(self) -> Trained:
        return self.once(lambda: trained(self.model, self.recipe), "trained", self.recipe.adapter)

    @cached_property
    def sizes(self) -> tuple[list[int], list[int]]:
        """Elements of each trained, and of each frozen weight."""
        return self.once(self._sizes, self.recipe.adapter)

    def _sizes(self) -> tuple[list[int], list[int]]:
        if not (self.trained.own or self.trained.added):
            raise UserError("adapter: it trains no weight of this model; name others (adapter.targets, adapter.train)")
        learned = {id(weight) for weight in self.trained.own}
        names = {weight.name for weight in self.trained.own}
        frozen = [w.size for w in self.model.named() if id(w) not in learned and w.name not in names]
        return [weight.size for weight in (*self.trained.own, *self.trained.added)], frozen

    @cached_property
    def placed(self) -> Placed:
        return self.sharded(self._placed, self.recipe.engine.offload_params)

    def _placed(self) -> Placed:
        learned, frozen = self.sizes
        return placed(learned, frozen, self.sharding, self.recipe.engine.offload_params, self.device is not None)

    def sharded(self, find: Callable[[], T], *of: object) -> T:
        """What follows from the sizes of weights and how they are sharded."""
        return self.once(find, self._states_key, *of)

    @cached_property
    def _states_key(self) -> str:
        return repr((self.recipe.adapter, self.sharding))

    @cached_property
    def four_bit(self) -> Sequence[Weight]:
        """Weights that are kept in 4 bits."""
        return self.once(lambda: quantized.in_four_bits(self.model, self.recipe), "4 bits", self.recipe.adapter)

    @cached_property
    def file_width(self) -> int:
        """Bytes of a number in the files of the base model."""
        return self.once(lambda: width_of_file(self.recipe.model), "file")

    @property
    def every(self) -> int:
        """Each first one of so many layers is computed again; 0: none."""
        return EVERY[self.recipe.model.activation_checkpointing]

    @cached_property
    def stage(self) -> int:
        least = lowest_stage(self.recipe)
        return 0 if reduction.shares_nothing(self.recipe, self.world) else max(self.recipe.engine.zero_stage, least)

    @cached_property
    def sharding(self) -> Sharding:
        engine, train = self.recipe.engine, self.recipe.train
        return Sharding(
            world=self.world,
            stage=self.stage,
            dtype=engine.dtype,
            grad_dtype=engine.grad_dtype if engine.dtype == "bf16" else "fp32",
            accumulates=train.global_batch > train.micro_rows * self.world,
            offload=engine.offload_optimizer,
            moments=4 if isinstance(self.recipe.adapter, AdaLora) else 2,
            once=self.stage >= 2 and reduction.reduces_once(self.recipe, self.world),
        )

    @cached_property
    def shape(self) -> duration.Shape:
        """Of one micro-batch, as full as it can be, or as empty."""
        full = shape_of(self.recipe, self.model)
        return emptiest(full, self.recipe) if self.emptiest else full

    @cached_property
    def activations(self) -> Activations:
        return self.once(self._activations, *self._computed_from)

    def _activations(self) -> Activations:
        """Of several tasks those of the one that needs most."""
        each = (activations(one.model, one.batch, self._computing(one)) for one in self._given())
        return max(each, key=lambda found: found.peak)

    @cached_property
    def evaluation(self) -> dict[str, int]:
        """Bytes that an evaluation needs beside states."""
        return self.once(self._evaluation, *self._computed_from)

    def _evaluation(self) -> dict[str, int]:
        """Of several tasks those of the one that needs most."""
        return max(map(self._evaluated, self._given()), key=lambda found: sum(found.values()))

    def _evaluated(self, one: Given) -> dict[str, int]:
        task = one.task
        writing = Writing(task.beams, task.longest_target + 1) if isinstance(task, Generation) else None
        return evaluation(one.model, one.batch, self._computing(one), writing, named=isinstance(task, MaskedLM))

    def _given(self) -> Iterator[Given]:
        return given(self.recipe, self.model, self.shape)

    @property
    def _computed_from(self) -> tuple[object, ...]:
        recipe = self.recipe
        engine = recipe.engine.dtype, recipe.engine.loss_chunk
        return recipe.model, recipe.adapter, engine, recipe.data.packing, recipe.task, self.shape

    def _computing(self, one: Given) -> Computing:
        numbers = Numbers(self.sharding.weight_bytes, "cpu" if self.device is None else "cuda")
        kind = attention(self.recipe, self.model, on_gpu=self.device is not None)
        return Computing(numbers, kind, self.update, self.every, one.gathered, self._chunk(one))

    def _chunk(self, one: Given) -> int:
        """Most targets whose logits are made at once; 0: those of all, as with an adapter on the head."""
        head = head_weight(one.model)
        if head is None or not isinstance(one.task, CausalLM | MaskedLM | DPO | Generation):
            return 0
        modules = tuple(f"{PREFIX}{name}." for name in (head.name.rpartition(".")[0], *one.model.outputs))
        adapted = any(added.name.startswith(modules) for added in self.trained.added)
        weighed = isinstance(one.task, DPO) and self.update(head.name, head).whole  # by what is known afterwards
        return 0 if adapted or weighed else self.recipe.engine.loss_chunk

    @cached_property
    def update(self) -> Callable[[str, Weight], Update]:
        return self.once(lambda: updates(self.trained, self.recipe.adapter), "update", self.recipe.adapter)
