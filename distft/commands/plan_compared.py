"""What a run has measured beside its prediction, in sentences, and the rate that its site's profile lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from distft.commands.plan_run import Measured
from distft.plan.duration import GB, LINKS
from distft.plan.prediction import Prediction, text_of


def compared(found: Measured, expected: Prediction) -> Iterator[str]:
    if found.after_steps is not None:
        yield memory(found.after_steps, found, expected)
    if found.seconds is None:
        return
    share = full(found, expected)
    rows = f", rows {share:.0%} full" if share is not None else ""
    yield f"measured: {found.seconds:.3g} s a step (median of {found.steps}{rows}){beside(share, expected)}"
    if (line := rate_line(found, expected)) is not None:
        yield f"for [rates] in the site profile: {line}"


# Memory


def memory(after_steps: float, found: Measured, expected: Prediction) -> str:
    """Like with like: on a CPU processes with all that they have imported, on a GPU what torch's allocator counts,
    which has no part in CUDA's context."""
    pairs = list(_pairs(after_steps, found, expected))
    if not pairs:
        return "measured on GPUs; give --gpu NAME to compare"
    said = (f"{text_of(have)} {what}, predicted {text_of(want)} ({have / want - 1:+.0%})" for what, have, want in pairs)
    return f"measured on the worst rank{f' of attempt {found.attempt}' if found.attempt else ''}: {'; '.join(said)}"


def _pairs(after_steps: float, found: Measured, expected: Prediction) -> Iterator[tuple[str, float, float]]:
    """(what, measured, predicted)."""
    if found.reserved is not None:
        if expected.device is not None:
            yield "allocated", after_steps, _without(expected, "CUDA", "lost by allocator")
            yield "reserved", found.reserved, _without(expected, "CUDA")
        return
    if found.peak is not None:
        yield "at most", found.peak, expected.peak.total
    rest = [moment.total for moment in expected.moments if moment.name == "save"]
    yield "after steps", after_steps, rest[0] if rest else expected.peak.total


def _without(expected: Prediction, *terms: str) -> int:
    """The peak, if these terms do not count."""
    return max(sum(size for name, size in one.terms.items() if name not in terms) for one in expected.moments)


# Time


def full(found: Measured, expected: Prediction) -> float | None:
    """Tokens in a step, as a share of those of full rows."""
    return None if found.tokens is None else min(1.0, found.tokens / expected.step_tokens)


def beside(share: float | None, expected: Prediction) -> str:
    times = expected.times
    if times is None:
        return ""
    if share is None:
        return f", predicted {times.step:.3g} s for full rows"
    part = replace(times, computing=times.computing * share)
    return f", predicted {part.step:.3g} s for as many tokens, {times.step:.3g} s for full rows"


def rate_line(found: Measured, expected: Prediction) -> str | None:
    """The key of the profile that decides the predicted time, with the value that gives what was measured; None: it
    cannot be told."""
    times, device, share = expected.times, expected.device, full(found, expected)
    if times is None or device is None or found.seconds is None:
        return None
    took, computing = found.seconds - times.moving, times.computing * (share or 1.0)
    if computing >= times.sending:
        done = times.at_peak * (share or 0.0)
        if found.mfu is not None:  # whatever the rows hold; it leaves out what is computed again
            done = found.seconds * found.mfu / expected.useful
        left = took - (1 - times.hidden) * times.sending
        return f"reached = {done / left:.2g}" if 0.005 * left < done <= left else None
    left = took - (1 - times.hidden) * computing
    slow, other = sorted((times.between, times.within), reverse=True)
    if left <= other:
        return None
    out = times.between > times.within
    key, rate = ("between_nodes", device.between) if out else ("within_node", device.link * LINKS)
    return f"{key} = {rate * slow / (left - other) / GB:.3g}"
