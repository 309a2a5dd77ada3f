"""What a run knows of its plan: what an attempt wrote down at its start, and what its ranks have measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from statistics import median

from distft.plan import record
from distft.plan.prediction import Prediction
from distft.recipe.schema import Recipe
from distft.recipe.tasks import CausalLM, MaskedLM, SequenceClassification, TokenClassification
from distft.run.folder import RunDir

WARMING = 3  # steps of an attempt that are slower than those after them
STEPS = 200  # that are looked at, the newest
ONE_STACK = CausalLM | MaskedLM | SequenceClassification | TokenClassification  # "useful tokens" are all that is fed

Records = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Measured:
    """Figures of one attempt; None: they were not recorded.

    Attributes:
        attempt: its number; 0: the records do not say.
        after_steps: bytes of the worst rank, allocated on a GPU, at most; on a CPU resident after a step.
        reserved: bytes by torch on a GPU; None: the ranks were on CPUs.
        peak: bytes that were resident on a CPU at most; None: on a GPU, or it was not recorded.
        steps: warmed up, of which the other figures are medians.
        seconds: of a step.
        tokens: that a step was fed; None: in tasks that count others, too.
        mfu: FLOPs that were needed, as a share of the GPUs' peak.
    """

    attempt: int
    after_steps: float | None = None
    reserved: float | None = None
    peak: float | None = None
    steps: int = 0
    seconds: float | None = None
    tokens: float | None = None
    mfu: float | None = None


def measured(run: RunDir, recipe: Recipe) -> Measured | None:
    """Of the newest attempt that has recorded memory or, if none has, steps; None: there is none."""
    records: Records = list(run.records())
    last = newest(records, "worst_memory_bytes") or newest(records, "seconds")
    if last is None:
        return None
    attempt = last.get("attempt", 0)
    own = [one for one in records if one.get("attempt", 0) == attempt]
    steps = [one for one in own if number(one, "seconds")][WARMING:][-STEPS:]
    fed = middle(number(one, "seconds", "useful_tokens_per_s") for one in steps)
    return Measured(
        attempt=attempt if isinstance(attempt, int) else 0,
        after_steps=most(own, "worst_memory_bytes"),
        reserved=most(own, "worst_memory_reserved_bytes"),
        peak=most(own, "worst_memory_peak_bytes"),
        steps=len(steps),
        seconds=middle(number(one, "seconds") for one in steps),
        tokens=fed if isinstance(recipe.task, ONE_STACK) else None,
        mfu=middle(number(one, "mfu") for one in steps),
    )


def newest(records: Records, key: str) -> Mapping[str, object] | None:
    return next((one for one in reversed(records) if number(one, key) is not None), None)


def most(records: Records, key: str) -> float | None:
    return max((found for one in records if (found := number(one, key)) is not None), default=None)


def middle(found: Iterable[float | None]) -> float | None:
    """The median of what was recorded."""
    return median(numbers) if (numbers := [one for one in found if one is not None]) else None


def number(one: Mapping[str, object], *keys: str) -> float | None:
    """What a record has under a key, or the product of several; None if one is missing, or is no positive number."""
    values = [one.get(key) for key in keys]
    numbers = [float(value) for value in values if isinstance(value, int | float) and 0 < value < inf]
    return prod(numbers) if len(numbers) == len(keys) else None


def recorded(run: RunDir, attempt: int) -> Prediction | None:
    """What an attempt wrote down at its start."""
    return record.read(run.attempt_logs(attempt)) if attempt else None
