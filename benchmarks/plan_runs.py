"""Measured peaks of runs on CPUs beside what `distft plan` says of their recipes.

    python -m benchmarks.plan_runs docs/results/plan-measured.jsonl

The file is that of `benchmarks/plan_memory.py`. Two figures: the fullest rank's VmHWM, and the highest sum of the
ranks' Pss, in which a page that several have counts once; both less what imports take. Only runs with the threshold of
glibc fixed count, for else freed memory stays in the process.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plan_cases import MIB, Case, planned, recipe_of
from distft.plan.prediction import Moment
from distft.plan.process import IMPORTS
from distft.plan.shapes import architecture_of


@dataclass(frozen=True)
class Compared:
    """Bytes, less imports: predicted and measured of the fullest rank (a) and of all ranks together (b)."""

    case: Case
    trained: int
    total: int
    rank: tuple[Moment, int]
    together: tuple[Moment, int]

    @property
    def errors(self) -> tuple[float, float]:
        (one, most), (all_, sum_) = self.rank, self.together
        return (one.total - IMPORTS) / most - 1, (all_.total - all_.terms["imports"]) / sum_ - 1


def together(ranks: Sequence[dict[str, Any]], seen: dict[str, Any], base: int) -> int:
    """Most bytes of all ranks by Pss.

    Peaks shorter than the time between two looks are in the kernel's records alone: VmHWM at a place, less what was
    shared there, is a rank's Pss; and ranks are at a place of a step together, as they wait for each other there.

    Args:
        seen: the highest sum at one look. Ranks were looked at one after the other, so if one lets the file of the base
            model go in between, another one has all of it and it counts twice; no file can.
        base: bytes of that file.
    """
    libraries = sum(rank["places"]["the end of the save"].get("pss_file", 0) for rank in ranks)
    twice = max(0, seen["file"] - base - libraries)
    sums: Counter[str] = Counter()
    for rank in ranks:
        for place, most in rank["places"].items():
            if most.get("pss") and (len(ranks) == 1 or place != "the model"):  # which has peaks of several kinds
                sums[place] += max(most["pss"], most.get("hwm", 0) - most.get("shared", most["rss"] - most["pss"]))
    return max(seen["pss"] - twice if len(ranks) > 1 else 0, *sums.values())


def compared(run: dict[str, Any]) -> Compared:
    case = Case(**run["case"])
    base = 4 * architecture_of(recipe_of(case)).parameters
    found, each = planned(case), sorted(run["processes"], key=lambda one: len(one["places"]))
    named = {one["name"]: one for one in each if one["name"].startswith("distft-rank")}
    ranks = list(named.values())  # what a rank forks to call a program has its name for a moment
    return Compared(
        case,
        run["trained"],
        run["total"],
        (found.peak, max(one["hwm"] for one in ranks) - IMPORTS),
        (
            max(found.node_moments, key=lambda one: one.total),
            together(ranks, run["together"], base) - run["together"]["imports"],
        ),
    )


def line(one: Compared) -> str:
    case, (peak, most), (node, sum_), (a, b) = one.case, one.rank, one.together, one.errors
    kind = f"{case.architecture} {case.task}" if case.task != "causal-lm" else case.architecture
    adapter = "full" if case.adapter == "none" else f"{case.adapter} {case.rank}"
    numbers = case.dtype if case.dtype == "fp32" else f"{case.dtype}/{case.grad_dtype}"
    rows = f"{case.batch // case.micro} x {case.micro} x {case.row}"
    also = ", again" * case.recompute + ", packed" * (case.packed and case.task == "causal-lm") + ", tied" * case.tied
    return (
        f"| {case.name} | {kind} {one.total / 1e6:.0f} M, {adapter} | {case.ranks} x ZeRO {case.stage}, {numbers} | "
        f"{rows}{also} | {(peak.total - IMPORTS) / MIB:,.0f} ({peak.name}) | {most / MIB:,.0f} | {a:+.1%} | "
        f"{(node.total - node.terms['imports']) / MIB:,.0f} ({node.name}) | {sum_ / MIB:,.0f} | {b:+.1%} |"
    )


def said(name: str, errors: Sequence[float]) -> str:
    sizes = np.abs(errors)
    return (
        f"{name}: median of the errors' size {np.median(sizes):.1%}, 95th percentile {np.percentile(sizes, 95):.1%}, "
        f"largest {sizes.max():.1%}; {len(sizes)} runs"
    )


def main() -> None:
    runs = [json.loads(line) for path in sys.argv[1:] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    found = [compared(run) for run in runs if run["threshold"] and run["case"]["name"][0].isdigit()]
    print("| run | model | ranks | rows | predicted, MiB | measured | error | together: predicted | measured | error |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for one in found:
        print(line(one))
    for seed in sorted({one.case.name.split("-")[0] for one in found}):
        errors = [one.errors for one in found if one.case.name.startswith(f"{seed}-")]
        print(f"\nSeed {seed}. {said('Fullest rank', [a for a, _ in errors])}.")
        print(f"{said('Together', [b for _, b in errors])}.")


if __name__ == "__main__":
    main()
