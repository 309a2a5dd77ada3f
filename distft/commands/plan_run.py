"""A run beside its prediction: what an attempt wrote down at its start, and what its ranks have measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from distft.plan import record
from distft.plan.prediction import Prediction, text_of
from distft.run.folder import RunDir


@dataclass(frozen=True)
class Measured:
    """Bytes of the worst rank in one attempt.

    Attributes:
        attempt: its number; 0: the records do not say.
        after_steps: allocated on a GPU, at most; on a CPU resident after a step.
        reserved: by torch on a GPU; None: the ranks were on CPUs.
        peak: resident on a CPU at most; None: on a GPU, or it was not recorded.
        step_seconds: of a step, the median; None: no step was recorded.
    """

    attempt: int
    after_steps: float
    reserved: float | None = None
    peak: float | None = None
    step_seconds: float | None = None


def measured(run: RunDir) -> Measured | None:
    """Of the newest attempt that has recorded it."""
    records = list(run.records())
    number = next((one.get("attempt", 0) for one in reversed(records) if "worst_memory_bytes" in one), None)
    if number is None:
        return None
    own = [one for one in records if one.get("attempt", 0) == number]

    def most(name: str) -> float | None:
        return max((float(one[name]) for one in own if name in one), default=None)

    seconds = [float(one["seconds"]) for one in own if "seconds" in one]
    return Measured(
        attempt=int(number),
        after_steps=most("worst_memory_bytes") or 0.0,
        reserved=most("worst_memory_reserved_bytes"),
        peak=most("worst_memory_peak_bytes"),
        step_seconds=median(seconds) if seconds else None,
    )


def recorded(run: RunDir, attempt: int) -> Prediction | None:
    """What an attempt wrote down at its start."""
    return record.read(run.attempt_logs(attempt)) if attempt else None


def comparison(expected: Prediction, found: Measured) -> str:
    """Like with like: on a CPU processes with all that they have imported, on a GPU what torch's allocator counts,
    which has no part in CUDA's context."""
    pairs = list(_pairs(expected, found))
    if not pairs:
        return "measured on GPUs; give --gpu NAME to compare"
    said = (f"{text_of(have)} {what}, predicted {text_of(want)} ({have / want - 1:+.0%})" for what, have, want in pairs)
    return f"measured on the worst rank{f' of attempt {found.attempt}' if found.attempt else ''}: {'; '.join(said)}"


def _pairs(expected: Prediction, found: Measured) -> Iterator[tuple[str, float, float]]:
    """(what, measured, predicted)."""
    if found.reserved is not None:
        if expected.device is not None:
            yield "allocated", found.after_steps, _without(expected, "CUDA", "lost by allocator")
            yield "reserved", found.reserved, _without(expected, "CUDA")
        return
    if found.peak is not None:
        yield "at most", found.peak, expected.peak.total
    rest = [moment.total for moment in expected.moments if moment.name == "save"]
    yield "after steps", found.after_steps, rest[0] if rest else expected.peak.total


def _without(expected: Prediction, *terms: str) -> int:
    """The peak, if these terms do not count."""
    return max(sum(size for name, size in one.terms.items() if name not in terms) for one in expected.moments)
