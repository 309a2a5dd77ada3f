"""Adapters on real data (GSM8K, a small random Llama): every ZeRO stage on 1, 2 and 4 ranks beside plain loops.

    make adapters             FOLDER/report.json; an hour and more on two cores

1. LoRA, rsLoRA, DoRA, LoRA+, modules_to_save, partial, AdaLoRA: losses, and AdaLoRA's pattern after every step.
2. AdaLoRA broken in every phase against unbroken, bit for bit, with dropout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from exactness import DATA, HOURS, ROOT, SMALL

from distft.recipe.load import dump, load
from tests.dist.launch import run_ranks

MODULE = "tests.dist.adapters"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ranks", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--only", nargs="*", default=[], help="variants; default: all")
    args = parser.parse_args()
    if not DATA.exists():
        sys.exit(f"{DATA} is not there; this benchmark needs the GSM8K files")
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "adapters.yaml"
    config.write_text(dump(load(ROOT / "configs" / "gsm8k-lora.yaml", [f"data.train={DATA}", *SMALL])))
    common, began = (str(folder), str(config), "--steps", str(args.steps)), time.monotonic()
    only = ("--only", *args.only) if args.only else ()
    run_ranks(MODULE, 1, "reference", *common, *only, timeout=HOURS)
    rows = []
    for ranks in args.ranks:
        run_ranks(MODULE, ranks, "equal", *common, *only, timeout=HOURS)
        rows += json.loads((folder / f"equal-{ranks}.json").read_text())
        print(f"equal on {ranks} ranks: {time.monotonic() - began:.0f} s", flush=True)
    run_ranks(MODULE, 2, "resume", str(folder), str(config), "--steps", "30", timeout=HOURS)
    print(f"resume: {time.monotonic() - began:.0f} s", flush=True)
    run_ranks(MODULE, 1, "paper", str(folder), str(config), "--steps", str(args.steps), timeout=HOURS)
    print((folder / "paper.json").read_text())
    (folder / "report.json").write_text(json.dumps(rows, indent=1))
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        worst, allocations = max(row["worst"] for row in mine), {row["allocations"] for row in mine}
        print(f"{variant}: {len(mine)} layouts, worst {worst:.1e}, allocations {allocations}")


if __name__ == "__main__":
    main()
