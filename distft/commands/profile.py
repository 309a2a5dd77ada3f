"""`distft profile`: where the time and memory of profiled steps went, as a table and a picture."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from distft.plan.prediction import text_of
from distft.run import profile
from distft.run.files import complete_file
from distft.run.folder import RunDir

PICTURE = "profile.png"
MOST_RANKS = 6  # more are shown by the slowest, the one that waits most, and the mean
MOST_BARS = 32
WORTH_SAYING = 0.02  # of a step's time
TITLES = {
    profile.ATTENTION_BACKWARD: "attention, backward",
    profile.LOSS_BACKWARD: "loss, backward",
    profile.WAITING: "waiting for ranks",
    profile.LAUNCHING: "device without work",
}
_SHARED = {profile.COMMUNICATION, profile.WAITING, profile.LAUNCHING, profile.OTHER}
_COLORS = (
    *("#8c564b", "#1f77b4", "#6baed6", "#c6dbef", "#e6550d", "#fd8d3c", "#fdd0a2"),
    *("#31a354", "#c7e9c0", "#756bb1", "#e7ba52", "#bcbddc", "#d62728", "#bdbdbd"),
)


def findings(found: Mapping[str, Any]) -> dict[str, Any]:
    """Which rank is the slowest, and which phase takes most memory: for `profile.json`."""
    ranks = found["ranks"]
    memory = _fullest(ranks)
    if len(ranks) == 1 or not found["compared"]:
        return {"slowest": None, "fullest": memory}
    slowest = min(ranks, key=lambda one: one["parts"][profile.WAITING])
    others = [one for one in ranks if one is not slowest]
    waited = max(one["parts"][profile.WAITING] for one in others) - slowest["parts"][profile.WAITING]
    longer = {
        part: slowest["parts"][part] - mean(one["parts"][part] for one in others)
        for part in profile.PARTS
        if part not in _SHARED
    }
    part = max(longer, key=lambda name: longer[name])
    about = {"rank": slowest["rank"], "host": slowest["host"], "waited": waited, "part": part, "longer": longer[part]}
    return {"slowest": about, "fullest": memory}


def _fullest(ranks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Between two phases a process on a CPU still has what it had in the one before."""
    sizes = [(size, one["rank"], phase) for one in ranks for phase, size in one["memory"].items()]
    most = max(sizes)
    within = [one for one in sizes if one[2] != profile.OTHER and one[0] > 0.98 * most[0]]
    size, rank, phase = max(within, default=most)
    return {"rank": rank, "phase": phase, "bytes": size}


def text(found: Mapping[str, Any], width: int = 120) -> str:
    """Tables and sentences, for a log."""
    written = io.StringIO()
    console = Console(file=written, width=width, highlight=False)
    for one in (times(found), memory(found)):
        console.print(one)
        console.print()
    for sentence in sentences(found):
        console.print(sentence, markup=False, soft_wrap=True)
    return written.getvalue().rstrip("\n")


def times(found: Mapping[str, Any]) -> Table:
    """Milliseconds per step: parts (rows) by rank (columns)."""
    steps, columns = found["steps"], _columns(found)
    table = _table(f"ms per step, {_steps(found)}", [*columns, "share"])
    seconds = [[one["parts"][part] / steps for part in profile.PARTS] for one in found["ranks"]]
    averages = [mean(column) for column in zip(*seconds, strict=True)]
    whole = sum(averages)
    shown = [[one["parts"][part] / steps for part in profile.PARTS] for one in columns.values()]
    for number, part in enumerate(profile.PARTS):
        if averages[number] > 0.0:
            row = (_ms(one[number]) for one in shown)
            table.add_row(TITLES.get(part, part), *row, f"{averages[number] / whole:.1%}")
    table.add_section()
    table.add_row("[bold]sum[/]", *(f"[bold]{_ms(sum(one))}[/]" for one in shown), "100.0%")
    return table


def _ms(seconds: float) -> str:
    """Six ranks fit 80 columns of a terminal."""
    return f"{1e3 * seconds:,.1f}" if seconds < 1.0 else f"{1e3 * seconds:,.0f}"


def memory(found: Mapping[str, Any]) -> Table:
    """Peak bytes: phases (rows) by rank (columns)."""
    columns = _columns(found)
    title = "peak allocated on the GPU" if found["device"] == "cuda" else "peak resident"
    table = _table(title, list(columns))
    fullest = found["fullest"]
    phases = [part for part in profile.PARTS if any(part in one["memory"] for one in found["ranks"])]
    for phase in phases:
        row = []
        for one in columns.values():
            size = one["memory"].get(phase, 0)
            cell = text_of(size) if size else "-"
            row.append(f"[bold]{cell}[/]" if (phase, size) == (fullest["phase"], fullest["bytes"]) else cell)
        table.add_row(phase, *row)
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title, *columns, box=None, pad_edge=False)
    table.columns[0].min_width = max(len(_title(part)) for part in profile.PARTS)
    for column, head in zip(table.columns[1:], columns, strict=True):
        column.justify, column.no_wrap = "right", len(head) <= len("rank 999")
    return table


def _columns(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Ranks by the heads of their columns; of many the slowest, the one that waits most, and their mean."""
    ranks = found["ranks"]
    if len(ranks) <= MOST_RANKS:
        return {f"rank {one['rank']}": one for one in ranks}
    slowest = min(ranks, key=lambda one: one["parts"][profile.WAITING])
    waits = max(ranks, key=lambda one: one["parts"][profile.WAITING])
    return {
        f"rank {slowest['rank']}, the slowest": slowest,
        f"rank {waits['rank']}, waits most": waits,
        f"mean of {len(ranks)} ranks": {
            "parts": {part: mean(one["parts"][part] for one in ranks) for part in profile.PARTS},
            "memory": {name: mean(one["memory"].get(name, 0) for one in ranks) for name in slowest["memory"]},
        },
    }


def _steps(found: Mapping[str, Any]) -> str:
    first, steps = found["first_step"], found["steps"]
    return f"step {first}" if steps == 1 else f"steps {first} to {first + steps - 1}"


def sentences(found: Mapping[str, Any]) -> Iterator[str]:
    """What a table does not say."""
    steps, slowest, fullest = found["steps"], found["slowest"], found["fullest"]
    step = mean(sum(one["parts"].values()) for one in found["ranks"]) / steps
    if not found["compared"]:
        yield "the ranks did other collectives than each other, so nothing is known of waiting: it is in communication"
    elif slowest is not None and slowest["waited"] / steps < WORTH_SAYING * step:
        yield "no rank is much slower than the others"
    elif slowest is not None:
        waited, longer = slowest["waited"] / steps, slowest["longer"] / steps
        yield (
            f"the slowest is rank {slowest['rank']} ({slowest['host']}): another one waits {1e3 * waited:,.1f} ms "
            f"longer than it per step ({waited / step:.0%}). " + _lost(slowest["part"], longer, step)
        )
    yield f"memory is fullest in {fullest['phase']}, on rank {fullest['rank']}: {text_of(fullest['bytes'])}"
    waits = max(one["host_waits"] for one in found["ranks"]) / steps
    if waits > 0.0:
        yield f"the host waits for the device up to {1e3 * waits:,.1f} ms per step, while the device is at work"


def _lost(part: str, longer: float, step: float) -> str:
    if longer < WORTH_SAYING * step:
        return "No part of its own work takes longer than on the others: look at the network"
    return f"Compared with the others it loses most in {_title(part)}: {1e3 * longer:,.1f} ms"


def _title(part: str) -> str:
    return TITLES.get(part, part)


def draw(run: RunDir, found: Mapping[str, Any]) -> Path:
    """Write the picture: a bar of seconds per step for each rank, and memory by phase of the fullest one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ranks = found["ranks"]
    if len(ranks) > MOST_BARS:  # those that wait least and most
        ordered = sorted(ranks, key=lambda one: one["parts"][profile.WAITING])
        ranks = [*ordered[: MOST_BARS // 2], *ordered[-MOST_BARS // 2 :]]
    height = 2.2 + 0.3 * max(len(ranks), 6)
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, height), layout="constrained", width_ratios=(3, 1), squeeze=True
    )
    names, starts = [f"rank {one['rank']}" for one in ranks], [0.0] * len(ranks)
    for part, color in zip(profile.PARTS, _COLORS, strict=True):
        widths = [one["parts"][part] / found["steps"] for one in ranks]
        if any(widths):
            left.barh(names, widths, left=starts, color=color, label=_title(part), edgecolor="white", linewidth=0.3)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
    left.invert_yaxis()
    left.set(xlabel="seconds per step", title=f"{run.read().name}: {_steps(found)}")
    left.legend(ncols=5, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18))
    fullest = found["fullest"]["rank"]
    peaks = next(one["memory"] for one in found["ranks"] if one["rank"] == fullest)
    right.bar(list(peaks), [size / (1 << 30) for size in peaks.values()], color="#6baed6")
    right.tick_params(axis="x", rotation=60)
    right.set(ylabel="GiB", title=f"peak memory, rank {fullest}")
    path = run.path / PICTURE
    with complete_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)
    return path


def show(run: RunDir, attempt: int | None) -> None:
    """Print the profile of an attempt, or the newest one."""
    print(text(profile.read(run, attempt), Console().width))
