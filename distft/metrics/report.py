"""Evaluation reports: tables on the terminal, JSON, and plots."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distft.metrics.scores import Confusion, Curve, Report, ScoreTable
from distft.run.files import complete_file, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COUNTED = 20  # labels of a confusion matrix with numbers in its cells
MOST_NAMED = 40  # labels at its axes, and curves in a legend; of more every n-th, and none
LONGEST_NAME = 30  # characters of a label in a picture
STYLES = ("-", "--", "-.", ":")  # times ten colours: a look a curve


def as_json(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report)


def show(title: str, report: Report) -> None:
    """Tables of the scores and of the classes; then the parts, each likewise."""
    console = Console(highlight=False)
    theirs = {f"{name}.{score}" for name, part in report.parts.items() for score in part.scores}
    own = [(name, [value]) for name, value in report.scores.items() if name not in theirs]
    if own:
        console.print(_table(title, ScoreTable("score", ("value",), own)))
    elif not report.parts:
        console.print(f"{escape(title)}: nothing to score")
    if report.table is not None:
        console.print(_table(f"{title}: {report.table.title}", report.table))
    for name, part in report.parts.items():
        show(f"{title}, {name}", part)


def _table(title: str, content: ScoreTable) -> Table:
    """As a classification report is laid out, the averages below a line."""
    table = Table("", title=escape(title))
    for column in content.columns:
        table.add_column(escape(column), justify="right")
    for (name, values), (following, _) in zip(content.rows, [*content.rows[1:], ("", [])], strict=True):
        shown = [str(value) if isinstance(value, int) else f"{value:.4f}" for value in values]
        last = following.endswith(" avg") and not name.endswith(" avg")
        table.add_row(escape(name), *shown, end_section=last)
    return table


def write(folder: Path, name: str, report: Report) -> list[Path]:
    """NAME.json, and NAME-confusion.png and NAME-precision-recall.png where there is something to draw.

    The same of each part, as NAME-PART. Returns the paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.json"]
    write_atomically(paths[0], json.dumps(as_json(report), indent=2, ensure_ascii=False) + "\n")
    if report.confusion is not None:
        paths.append(folder / f"{name}-confusion.png")
        _save(_confusion(name, report.confusion), paths[-1])
    if report.curves:
        paths.append(folder / f"{name}-precision-recall.png")
        _save(_curves(name, report.curves), paths[-1])
    return [*paths, *chain.from_iterable(write(folder, f"{name}-{part}", own) for part, own in report.parts.items())]


def _confusion(title: str, confusion: Confusion) -> Figure:
    """A heat map, truth by prediction; the colour of a cell is its share of the examples with that truth."""
    size = len(confusion.labels)
    shares = [[count / max(sum(row), 1) for count in row] for row in confusion.counts]
    side = 2.0 + (0.5 if size <= MOST_COUNTED else 0.28) * min(max(size, 5), MOST_NAMED)  # inches
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    if size <= MOST_COUNTED:
        for y, x in ((y, x) for y in range(size) for x in range(size)):
            colour = "white" if shares[y][x] > 0.5 else "black"
            axes.text(x, y, str(confusion.counts[y][x]), ha="center", va="center", color=colour, fontsize=8)
    ticks = range(0, size, math.ceil(size / MOST_NAMED))
    names = [_short(confusion.labels[tick]) for tick in ticks]
    look: dict[str, Any] = {"fontsize": 8, "parse_math": False}  # a label may have dollars in it
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", **look)
    axes.set_yticks(ticks, names, **look)
    axes.set(xlabel="predicted", ylabel="truth")
    axes.set_title(title, parse_math=False)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the truth")
    return figure


def _curves(title: str, curves: list[Curve]) -> Figure:
    """Precision by recall, a line a label."""
    named = len(curves) <= MOST_NAMED
    figure = _figure(8.5 if named else 6.0, max(5.0, 1.0 + 0.2 * len(curves) * named))
    axes = figure.subplots()
    for number, curve in enumerate(curves):  # between its points the curve is a staircase: precision is not linear
        style = STYLES[number // 10 % len(STYLES)]
        axes.step(curve.recall, curve.precision, style, where="pre", color=f"C{number % 10}", linewidth=1.2, label="x")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.05))
    axes.set_title(title, parse_math=False)
    axes.grid(alpha=0.3)
    if named:
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        for text, curve in zip(legend.get_texts(), curves, strict=True):  # as a label "_x" would not be in the legend
            text.set(text=_short(curve.name), parse_math=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    """In inches. Without pyplot, which would have to be told the backend, and to forget the figure: PNG is Agg's."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with complete_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # draws a box instead
        figure.savefig(temporary, dpi=120, format="png")


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_NAME else f"{label[: LONGEST_NAME - 1]}…"
