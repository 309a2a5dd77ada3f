"""The gate: whether a run may be sent, by its plan. Only what cannot fit, whatever the data are, is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distft.errors import UserError, first_line
from distft.plan.changes import Way, ways
from distft.plan.choice import choose
from distft.plan.config import with_snapshot
from distft.plan.estimate import Estimator
from distft.plan.place import Place
from distft.plan.prediction import EVALUATION, Moment, Prediction, text_of
from distft.plan.shapes import architecture_of, is_known
from distft.recipe.schema import Recipe
from distft.run.batch import is_open

MARGIN = 0.06  # of a peak, though no run on record took less than what is `certain` (tests/models/test_gate.py)
WAYS = 2  # that are named
DEEPEST = 1000  # layers; the time of a plan grows with them
SHARED = {"process", "file of weights"}  # ranks of a node share these pages, or the kernel takes them back


@dataclass(frozen=True)
class Verdict:
    """A sentence if a run cannot fit, or one if it may not, or nothing."""

    refusal: str | None = None
    warning: str | None = None


def judge(recipe: Recipe, place: Place) -> Verdict:
    """What the plan says of a run before it is sent; quick, and silent where it knows nothing of the place.

    A peak for full rows is an upper bound: it is warned of. Refused is what needs too much with rows that hold next to
    nothing, by more than a margin, if plans of its kind have been compared with what was counted.
    """
    if not place.is_known:
        return Verdict()
    try:
        recipe = recipe.model_copy(update={"model": with_snapshot(recipe.model, place.hub)})
        if not is_known(recipe):
            return Verdict(warning=unsaid("its model type is not in the plan's table; distft plan looks into it"))
        if (depth := sum(stack.depth for stack in architecture_of(recipe).stacks)) > DEEPEST:
            return Verdict(warning=unsaid(f"the model has {depth:,} layers, for which a plan would take long"))
        return judged(recipe, place)
    except UserError as error:
        return Verdict(warning=unsaid(first_line(error)))
    except Exception as error:  # noqa: BLE001 - a plan that fails is no reason not to send
        return Verdict(warning=unsaid(f"the plan has failed ({type(error).__name__}: {first_line(error)})"))


def judged(recipe: Recipe, place: Place) -> Verdict:
    """Raises whatever planning runs into."""
    estimator = Estimator(place.per_node, place.device, place.memory)
    if is_open(recipe):
        recipe = choose(recipe, place.nodes, place.per_node, estimator.predict).applied(recipe)
    most = estimator.predict(recipe, place.nodes)
    if most.fits:
        return Verdict(warning=host_warning(most))
    assert most.room is not None
    least = Estimator(place.per_node, place.device, place.memory, emptiest=True).predict(recipe, place.nodes)
    peak = max(certain(least), key=lambda moment: moment.total)
    found = ways(recipe, place.nodes, estimator.predict, WAYS)
    if peak.total > most.room * (1 + MARGIN) and was_compared(recipe):
        return Verdict(refusal=sentence("it cannot fit: a rank takes at least", peak, most, found))
    return Verdict(warning=sentence("it may not fit: with full rows a rank takes up to", most.peak, most, found))


def certain(least: Prediction) -> Iterator[Moment]:
    """What a rank takes in any case; an evaluation may be of fewer rows than a micro-batch has."""
    for moment in least.moments:
        if moment.name != EVALUATION:
            yield Moment(moment.name, {name: size for name, size in moment.terms.items() if name not in SHARED})


def was_compared(recipe: Recipe) -> bool:
    """Whether terms of plans of this kind were set beside what was counted (docs/results/plan-notes.md)."""
    return not recipe.engine.offload_params and getattr(recipe.adapter, "quantize", None) is None


def sentence(begin: str, peak: Moment, found: Prediction, changes: Sequence[Way]) -> str:
    of = f"the memory of {found.device.name}" if found.device is not None else "its part of a node's memory"
    assert found.room is not None
    blame = max(peak.terms, key=lambda name: peak.terms[name])
    instead = " or ".join(f"`{way.overrides}`" for way in changes)
    return (
        f"{begin} {text_of(peak.total)} ({peak.name}), most of it {blame} ({text_of(peak.terms[blame])}), and may use "
        f"{text_of(found.room)} ({of}); "
        + (f"it fits with {instead}" if changes else "no change of up to three keys makes it fit")
    )


def host_warning(found: Prediction) -> str | None:
    """Of ranks on GPUs, and of the export."""
    if found.device is None or found.node_memory is None or found.node <= found.node_memory:
        return None
    most = max(found.host_moments, key=lambda moment: moment.total)
    return (
        f"host memory may not suffice: a node takes up to {text_of(found.node)} ({most.name}), and a job gets "
        f"{text_of(found.node_memory)} of it"
    )


def unsaid(why: str) -> str:
    return f"whether it fits in memory is not known: {why}"
