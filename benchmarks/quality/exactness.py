"""Every task, full and LoRA, under ZeRO 0 to 3 on one and two ranks beside a plain loop, and broken beside unbroken.

    python benchmarks/quality/exactness.py FOLDER

On the embedded samples with tiny models; writes FOLDER/report.json and prints a table. See tests/dist/tasks.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.dist.launch import run_ranks

MODULE = "tests.dist.tasks"
RANKS = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    worst: dict[tuple[str, str], dict[str, float]] = {}
    for ranks in RANKS:
        place = folder / f"equal-{ranks}"
        place.mkdir(parents=True, exist_ok=True)
        run_ranks(MODULE, ranks, "equal", str(place), timeout=3600.0)
        for row in json.loads((place / f"equal-{ranks}.json").read_text()):
            key = f"ZeRO {row['stage']}, {ranks} ranks"
            worst.setdefault((row["task"], row["adapter"]), {})[key] = row["gap"]
    place = folder / "resume"
    place.mkdir(parents=True, exist_ok=True)
    run_ranks(MODULE, 2, "resume", str(place), timeout=3600.0)  # AssertionError where a bit differs
    table = Table("task", "adapter", "largest difference of a step's loss", "layouts", box=None, header_style="dim")
    for (task, adapter), gaps in worst.items():
        table.add_row(task, adapter, f"{max(gaps.values()):.1e}", str(len(gaps)))
    Console().print(table)
    print("broken and unbroken runs: bit for bit the same, for every task, full and LoRA")
    report = [{"task": task, "adapter": adapter, "gaps": gaps} for (task, adapter), gaps in worst.items()]
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
