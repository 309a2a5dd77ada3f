"""How `distft data` shows what becomes of records: on a terminal, and as a page."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from distft.training.preview import Preview, Shown, Side

BARS = 12  # of a histogram
WIDTH = 40  # characters of the longest bar
STYLE = """\
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
h2 { font-size: 1em; color: #666; font-weight: normal; margin: 2em 0 .3em }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f6; padding: .8em; margin: .2em 0 }
mark { background: #bfe8c5; color: inherit }
.ids { color: #777; font-size: .85em }
td { padding: 0 .6em 0 0; text-align: right; white-space: nowrap }
td.bar { text-align: left } td.bar div { background: #7ab37f; height: .8em }
.fault { color: #a33 }
"""


def on_terminal(found: Preview, console: Console, ids: bool) -> None:
    """Learned parts are green, and between brackets where there are no colours."""
    for one in found.shown:
        console.print(Text(one.where, "dim"))
        for side in one.sides:
            console.print(coloured(side, console.color_system is not None))
            if ids:
                console.print(Text(" ".join(map(str, side.ids)), "dim"))
        for name, value in one.facts.items():
            console.print(Text.assemble((f"{name}: ", "dim"), (value, "green")))
        console.print()
    for line in summary(found):
        console.print(Text(line))
    for label, number, share in histogram(found.sizes):
        console.print(Text(f"  {label:>15} {number:>9,} {'█' * round(share * WIDTH)}"))
    for fault in found.faults:
        console.print(Text(f"  {fault}", "red"))


def coloured(side: Side, colours: bool) -> Text:
    text = Text(f"{side.name}: " if side.name != "tokens" else "", "dim")
    for piece in side.pieces:
        shown = f"⟦{piece.text}⟧" if piece.learned and not colours else piece.text
        text.append(shown, "not dim black on green" if piece.learned else "not dim")
    return text


def summary(found: Preview) -> Iterator[str]:
    """What was counted, in sentences."""
    more = "" if found.complete else f" (the first {found.read:,}; --read N reads more)"
    yield f"{found.source}: {found.read:,} records{more}, {len(found.sizes):,} documents"
    if found.sizes:
        total, ordered = sum(found.sizes), sorted(found.sizes)
        learned = f", {found.targets:,} to learn" + (f" ({found.targets / total:.0%})" if found.learns_tokens else "")
        yield f"{total:,} {found.unit}{learned}; {ordered[len(ordered) // 2]:,} in the middle, {ordered[-1]:,} at most"
    if found.rows is not None:
        full = sum(found.sizes) / (found.rows * found.row_size)
        yield f"{found.rows:,} rows of {found.row_size:,}, {full:.0%} full (data.row_tokens)"
    for note, number in found.notes.items():
        yield f"{number:,} {note}"
        if note in found.warnings:
            yield f"  {found.warnings[note]}"
    if found.repeated:
        yield f"{found.repeated:,} of these documents are duplicates of others (data.duplicates)"
    if found.unusable:
        yield f"{found.unusable:,} records have nothing to learn and are left out"
    if found.faulty and found.refused:
        more = f", more than data.bad_budget {found.bad_budget:g} allows" if found.bad_budget is not None else ""
        yield f"{found.faulty:,} records cannot be used{more}, and a run would refuse the data:"
    elif found.faulty:
        yield f"{found.faulty:,} records cannot be used and are left out (data.bad_records):"


def histogram(sizes: Sequence[int]) -> list[tuple[str, int, float]]:
    """(range, number, share of the largest number) for ranges of one width, from the least to the most."""
    if not sizes:
        return []
    step = max(1, -(-(max(sizes) - min(sizes) + 1) // BARS))
    least = min(sizes) // step
    counts = [0] * (max(sizes) // step - least + 1)
    for size in sizes:
        counts[size // step - least] += 1
    return [
        (f"{(least + place) * step:,} to {(least + place + 1) * step - 1:,}", number, number / max(counts))
        for place, number in enumerate(counts)
    ]


def page(found: Preview, ids: bool) -> str:
    """One file of HTML that needs no other."""
    lines = "".join(f"<p>{html.escape(line)}</p>\n" for line in summary(found))
    faults = "".join(f'<p class="fault">{html.escape(fault)}</p>\n' for fault in found.faults)
    bars = "".join(
        f'<tr><td>{label}</td><td>{number:,}</td><td class="bar" style="width: 30em">'
        f'<div style="width: {share:.1%}"></div></td></tr>\n'
        for label, number, share in histogram(found.sizes)
    )
    records = "".join(of_record(one, ids) for one in found.shown)
    title = html.escape(found.source)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n<style>\n{STYLE}</style>'
        f"</head><body>\n{lines}{faults}<table>\n{bars}</table>\n"
        f"<p>What is <mark>marked</mark> is learned.</p>\n{records}</body></html>\n"
    )


def of_record(one: Shown, ids: bool) -> str:
    parts = [f"<h2>{html.escape(one.where)}</h2>\n"]
    for side in one.sides:
        text = "".join(
            f"<mark>{html.escape(piece.text)}</mark>" if piece.learned else html.escape(piece.text)
            for piece in side.pieces
        )
        parts.append(f"<pre>{text}</pre>\n")
        if ids:
            parts.append(f'<pre class="ids">{" ".join(map(str, side.ids))}</pre>\n')
    parts += [f"<p>{html.escape(name)}: <mark>{html.escape(value)}</mark></p>\n" for name, value in one.facts.items()]
    return "".join(parts)
