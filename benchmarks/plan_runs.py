"""Measured peaks of runs on CPUs beside what `distft plan` says of their recipes.

    python -m benchmarks.plan_runs docs/results/plan-measured.jsonl

The file is that of `benchmarks/plan_memory.py`. Two figures: the fullest rank's VmHWM, and the highest sum of the
ranks' Pss, in which a page that several have counts once; both less what imports take. Only runs with the threshold of
glibc fixed count, for else freed memory stays in the process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.plan_cases import MIB, Case, planned
from distft.plan.process import IMPORTS


def rank_error(run: dict[str, Any], case: Case) -> tuple[float, float, str]:
    """(predicted, measured, at which moment) of the fullest rank, in bytes."""
    peak = planned(case).peak
    measured = max(one["hwm"] for one in run["processes"] if "rank" in one["name"])
    return peak.total - IMPORTS, measured - IMPORTS, peak.name


def said(name: str, errors: Sequence[float]) -> str:
    sizes = np.abs(errors)
    return (
        f"{name}: median of the errors' size {np.median(sizes):.1%}, 95th percentile {np.percentile(sizes, 95):.1%}, "
        f"largest {sizes.max():.1%}; {len(sizes)} runs"
    )


def main() -> None:
    runs = [json.loads(line) for path in sys.argv[1:] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    errors = []
    for run in runs:
        case = Case(**run["case"])
        if not run["threshold"] or case.name.startswith("nothing"):
            continue
        expected, measured, at = rank_error(run, case)
        errors.append(expected / measured - 1)
        print(
            f"| {case.name} | {run['trained'] / 1e6:.1f} M of {run['total'] / 1e6:.1f} M | {case.ranks} | "
            f"{expected / MIB:,.0f} | {at} | {measured / MIB:,.0f} | {errors[-1]:+.1%} |"
        )
    print(f"\n{said('(a)', errors)}")


if __name__ == "__main__":
    main()
