"""How `distft plan` shows a prediction: a table of terms by moment, what to change, and what fits beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from distft.plan.changes import Way
from distft.plan.prediction import Moment, Prediction, text_of

SHOWN = 12  # lines of the grid


def terms(found: Prediction) -> Table:
    """Bytes of one rank's device."""
    return _table("one rank", found.moments)


def host_terms(found: Prediction) -> Table:
    """Bytes of host memory of one rank, and of the export, which is one process."""
    return _table("host memory", found.host_moments)


def _table(title: str, moments: Sequence[Moment]) -> Table:
    """Bytes by term (rows) and moment (columns)."""
    table = Table(title, *(moment.name for moment in moments), box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    names = dict.fromkeys(name for moment in moments for name in moment.terms)
    for name in names:
        sizes = [moment.terms.get(name, 0) for moment in moments]
        table.add_row(name, *(text_of(size) if size else "-" for size in sizes))
    table.add_section()
    peak = max(moments, key=lambda moment: moment.total)
    totals = (f"[bold]{text_of(one.total)}[/]" if one is peak else text_of(one.total) for one in moments)
    table.add_row("[bold]sum[/]", *totals)
    return table


def verdict(found: Prediction) -> Iterator[str]:
    """Whether it fits, and what else there is to know, in sentences."""
    ranks = f"{found.world} rank{'s' if found.world > 1 else ''}"
    where = f"on {ranks} of {found.per_node} a node" if found.world > found.per_node else f"on {ranks}"
    peak = f"{text_of(found.peak.total)} at most ({found.peak.name}) {where}"
    if found.room is None:
        yield f"{peak}; whether it fits is not known"
    elif found.fits:
        left = found.room - found.peak.total
        yield f"it fits: {peak}, {text_of(left)} below the {text_of(found.room)} that a rank may use"
    else:
        more = found.peak.total - found.room
        share = found.peak.terms[found.blame]
        yield (
            f"it does not fit: {peak}, {text_of(more)} more than the {text_of(found.room)} that a rank may use; "
            f"most of it are {found.blame} ({text_of(share)})"
        )
    yield f"host memory: {on_a_node(found)}" + (f", {text_of(found.host)} of a rank" if found.device else "")
    if found.step_seconds is not None:
        rate = found.step_tokens / found.step_seconds
        yield f"about {found.step_seconds:.2g} s a step, {rate:,.0f} tokens per second"
    yield from found.doubts


def on_a_node(found: Prediction) -> str:
    """What ranks and export take, beside what there is."""
    if found.node_memory is None:
        return f"{text_of(found.node)} of a node"
    more = ", which is too much" if found.node > found.node_memory else ""
    return f"{text_of(found.node)} of the {text_of(found.node_memory)} that a job gets of a node{more}"


def ways_out(ways: Sequence[Way]) -> Table:
    """Changes that make it fit, to copy."""
    table = Table("what makes it fit", "peak", "tokens/s", box=None, pad_edge=False)
    for way in ways:
        table.add_row(way.overrides, text_of(way.prediction.peak.total), speed(way.prediction))
    return table


def fitting(grid: Sequence[tuple[Mapping[str, Any], Prediction]]) -> Table:
    """What fits, the fastest first."""
    table = Table("nodes", "ZeRO", "micro_batch", "recompute", "peak", "tokens/s", box=None, pad_edge=False)
    for keys, found in grid[:SHOWN]:
        nodes, stage, batch, again = keys.values()
        table.add_row(str(nodes), str(stage), str(batch), str(again), text_of(found.peak.total), speed(found))
    return table


def speed(found: Prediction) -> str:
    return "-" if not found.step_seconds else f"{found.step_tokens / found.step_seconds:,.0f}"
