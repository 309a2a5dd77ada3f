"""A run beside its prediction: memory and time that were measured, and the rate that its site's profile lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from math import inf, prod
from statistics import median

from distft.plan.duration import GB, LINKS
from distft.plan.prediction import Prediction, text_of
from distft.recipe.schema import Recipe
from distft.recipe.tasks import CausalLM, MaskedLM, SequenceClassification, TokenClassification
from distft.run.folder import RunDir

WARMING = 3  # steps of an attempt that are slower than those after them
STEPS = 200  # that are looked at, the newest
ONE_STACK = CausalLM | MaskedLM | SequenceClassification | TokenClassification  # "useful tokens" are all that is fed


@dataclass(frozen=True)
class Measured:
    """Figures of a run; None: they were not recorded.

    Attributes:
        memory: bytes of the worst rank so far.
        steps: of the last attempt, warmed up, of which the other figures are medians.
        seconds: of a step.
        full: tokens in a step, as a share of those of full rows.
        mfu: FLOPs that were needed, as a share of the GPUs' peak.
    """

    memory: float | None
    steps: int = 0
    seconds: float | None = None
    full: float | None = None
    mfu: float | None = None


def measured_of(run: RunDir, recipe: Recipe, expected: Prediction) -> Measured:
    peaks = (number(record, "worst_memory_bytes") for record in run.records())
    memory = max((peak for peak in peaks if peak is not None), default=None)
    found = list(islice(steps(run), STEPS))
    if not found:
        return Measured(memory)
    fed = middle(number(record, "seconds", "useful_tokens_per_s") for record in found)
    full = min(1.0, fed / expected.step_tokens) if fed and isinstance(recipe.task, ONE_STACK) else None
    seconds, mfu = (middle(number(record, key) for record in found) for key in ("seconds", "mfu"))
    return Measured(memory, len(found), seconds, full, mfu)


def middle(found: Iterable[float | None]) -> float | None:
    """The median of what was recorded."""
    return median(numbers) if (numbers := [one for one in found if one is not None]) else None


def steps(run: RunDir) -> Iterator[Mapping[str, object]]:
    """Records of the last attempt's steps, the newest first, without the first ones."""
    newest = [record for record in islice(run.newest_records(), 2 * STEPS) if number(record, "seconds")]
    last = [record for record in newest if record.get("attempt") == newest[0].get("attempt")]
    whole = len(last) < len(newest) or run.lines() <= 2 * STEPS
    yield from last[:-WARMING] if whole else last


def number(record: Mapping[str, object], *keys: str) -> float | None:
    """What a record has under a key, or the product of several; None if one is missing, or is no positive number."""
    values = [record.get(key) for key in keys]
    numbers = [float(one) for one in values if isinstance(one, int | float) and 0 < one < inf]
    return prod(numbers) if len(numbers) == len(keys) else None


def compared(measured: Measured, expected: Prediction) -> Iterator[str]:
    """What was measured beside the prediction, in sentences."""
    if measured.memory is not None:
        most = expected.peak.total
        yield (
            f"measured: {text_of(measured.memory)} on the worst rank, predicted {text_of(most)} "
            f"({measured.memory / most - 1:+.0%})"
        )
    if measured.seconds is None:
        return
    share = f", rows {measured.full:.0%} full" if measured.full is not None else ""
    yield f"measured: {measured.seconds:.3g} s a step (median of {measured.steps}{share}){beside(measured, expected)}"
    if (line := rate_line(measured, expected)) is not None:
        yield f"for [rates] in the site profile: {line}"


def beside(measured: Measured, expected: Prediction) -> str:
    times = expected.times
    if times is None:
        return ""
    if measured.full is None:
        return f", predicted {times.step:.3g} s for full rows"
    part = replace(times, computing=times.computing * measured.full)
    return f", predicted {part.step:.3g} s for as many tokens, {times.step:.3g} s for full rows"


def rate_line(measured: Measured, expected: Prediction) -> str | None:
    """The key of the profile that decides the predicted time, with the value that gives what was measured; None: it
    cannot be told."""
    times, device = expected.times, expected.device
    if times is None or device is None or measured.seconds is None:
        return None
    took, computing = measured.seconds - times.moving, times.computing * (measured.full or 1.0)
    if computing >= times.sending:
        done = times.at_peak * (measured.full or 0.0)
        if measured.mfu is not None:  # whatever the rows hold; it leaves out what is computed again
            done = measured.seconds * measured.mfu / expected.useful
        left = took - (1 - times.hidden) * times.sending
        return f"reached = {done / left:.2g}" if 0.005 * left < done <= left else None
    left = took - (1 - times.hidden) * computing
    slow, other = sorted((times.between, times.within), reverse=True)
    if left <= other:
        return None
    out = times.between > times.within
    key, rate = ("between_nodes", device.between) if out else ("within_node", device.link * LINKS)
    return f"{key} = {rate * slow / (left - other) / GB:.3g}"
