"""From a recipe to its prediction: memory at the moments of a run, and time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from distft.plan import duration
from distft.plan.case import Case
from distft.plan.devices import Device
from distft.plan.host import host_moments
from distft.plan.moments import moments
from distft.plan.prediction import Prediction
from distft.plan.recomputed import share
from distft.plan.together import together
from distft.recipe.adapters import NoAdapter
from distft.recipe.schema import Recipe

T = TypeVar("T")


class Estimator:
    """Predicts recipes that differ in some keys; what they have in common is reckoned once."""

    def __init__(self, per_node: int, device: Device | None, memory: int | None = None, emptiest: bool = False) -> None:
        """`per_node`: ranks of a node; `memory`: bytes of host memory of a node, if known; `emptiest`: see `Case`."""
        self._per_node, self._device, self._memory, self._emptiest = per_node, device, memory, emptiest
        self._known: dict[str, Any] = {}

    def predict(self, recipe: Recipe, nodes: int) -> Prediction:
        """Raises UserError if the model is not here, or nothing can be said of it."""
        case = self._case(recipe, nodes)
        room = self._device.memory if self._device else self._memory // self._per_node if self._memory else None
        found, useful = times(case)
        return Prediction(
            world=case.world,
            per_node=case.per_node,
            device=case.device,
            moments=tuple(moments(case)),
            node_moments=tuple(together(case)) if case.device is None else (),
            host_moments=tuple(host_moments(case)),
            room=room,
            node_memory=self._memory,
            times=found,
            useful=useful,
            step_tokens=recipe.train.global_batch * (case.shape.tokens + case.shape.written),
            checkpoint=4 * (1 + case.sharding.moments) * sum(case.sizes[0]),
            doubts=tuple(doubts(case)),
        )

    def work(self, recipe: Recipe, nodes: int) -> tuple[duration.Work, duration.Sizes]:
        """What a rank computes in a micro-batch, and what is sent for it."""
        return work(self._case(recipe, nodes))

    def _case(self, recipe: Recipe, nodes: int) -> Case:
        return Case(recipe, nodes * self._per_node, self._per_node, self._device, self.once, self._emptiest)

    def once(self, find: Callable[[], T], *of: object) -> T:
        """What `find` finds for these parts of a recipe."""
        key = repr((find.__qualname__, *of))
        if key not in self._known:
            self._known[key] = find()
        found: T = self._known[key]
        return found


def work(case: Case) -> tuple[duration.Work, duration.Sizes]:
    """What a rank computes in a micro-batch, and what is sent for it."""
    again = share(case.model, case.every)
    regathered = round(again * duration.gathered_again(case.model))
    return computed(case, again), duration.Sizes(case.model.parameters, sum(case.sizes[0]), regathered)


def computed(case: Case, again: float) -> duration.Work:
    whole = isinstance(case.recipe.adapter, NoAdapter)
    added = case.once(lambda: sum(one.size for one in case.trained.added), case.recipe.adapter)
    return duration.work(case.model, added, whole, case.shape, again)


def times(case: Case) -> tuple[duration.Times | None, float]:
    """Of an optimizer step, None: it is not known how fast the device is; and which share of its FLOPs is useful."""
    if case.device is None or case.device.flops is None:
        return None, 1.0
    done, sizes = work(case)
    useful = computed(case, again=0.0).flops / done.flops if case.every else 1.0
    return duration.step_times(case.recipe, done, sizes, case.device, case.world, case.per_node), useful


def doubts(case: Case) -> Iterator[str]:
    if not case.model.exact:
        yield f"the model type {case.model.model_type} is not known here: its layers were guessed from its weights"
    if case.device is None:
        yield "on a CPU, memory that the C library does not return comes on top: 5 % to 70 %"
        if case.sharding.dtype == "bf16":
            yield "in bf16 on a CPU, up to 560 MiB of compiled kernels come on top with rows of many widths, or experts"
