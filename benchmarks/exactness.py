"""Exactness on real data: GSM8K, a small random Llama, every ZeRO stage, 1, 2 and 4 ranks. Writes FOLDER/report.md.

    make exactness            about an hour on two cores

1. Against a plain single-process torch + transformers (+ PEFT) loop that feeds each document by itself.
2. Broken and continued against unbroken, bit for bit, with dropout.
3. Continued under another number of ranks and another stage: masters, moments, and the samples that were fed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from distft.recipe.load import dump, load  # noqa: E402
from tests.dist.exactness import RELAYOUT, same_samples  # noqa: E402
from tests.dist.launch import run_ranks  # noqa: E402

DATA = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
SMALL = [
    "model.init.config.hidden_size=64",
    "model.init.config.intermediate_size=128",
    "data.row_tokens=192",
    "data.eval=null",
    "track.wandb=off",
    "engine.dtype=fp32",
]
MODULE = "tests.dist.exactness"
HOURS = 4 * 3600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--parts", nargs="*", default=["equal", "bf16", "resume", "layouts", "samples"])
    args = parser.parse_args()
    if not DATA.exists():
        sys.exit(f"{DATA} is not there; this benchmark needs the GSM8K files")
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "exactness.yaml"
    config.write_text(dump(load(ROOT / "configs" / "gsm8k-lora.yaml", [f"data.train={DATA}", *SMALL])))
    parts = {"equal": equal, "bf16": bf16, "resume": resume, "layouts": layouts, "samples": samples}
    for part in args.parts:
        began = time.monotonic()
        parts[part](str(folder), str(config), str(args.steps))
        print(f"{part}: {time.monotonic() - began:.0f} s", flush=True)
        report(folder, args.steps)


def equal(folder: str, config: str, steps: str) -> None:
    run_ranks(MODULE, 1, "reference", folder, config, "--steps", steps, timeout=HOURS)
    for ranks in (1, 2, 4):
        run_ranks(MODULE, ranks, "equal", folder, config, "--steps", steps, timeout=HOURS)


def bf16(folder: str, config: str, steps: str) -> None:
    run_ranks(MODULE, 2, "equal", folder, config, "--steps", steps, "--dtype", "bf16", timeout=HOURS)


def resume(folder: str, config: str, steps: str) -> None:
    run_ranks(MODULE, 2, "resume", folder, config, "--steps", "30", timeout=HOURS)


def layouts(folder: str, config: str, steps: str) -> None:
    """Every ordered pair of (ranks, stage) that writes and (ranks, stage) that reads."""
    for ranks in (1, 2, 4):
        run_ranks(MODULE, ranks, "write", folder, config, "--steps", "12", timeout=HOURS)
    for ranks in (1, 2, 4):
        run_ranks(MODULE, ranks, "read", folder, config, "--steps", "12", "--writers", "1", "2", "4", timeout=HOURS)
    adapters, pairs = 3, (3 * 4) ** 2
    (Path(folder) / "layouts.json").write_text(json.dumps({"loaded": adapters * pairs}))


def samples(folder: str, config: str, steps: str) -> None:
    """4 ranks, stage 3, then 2 ranks, stage 1, then 1 rank, stage 0, against 4 ranks, stage 2, unbroken."""
    plan = [(0, 4, 2), (1, 4, 3), (2, 2, 1), (3, 1, 0)]
    for part, ranks, stage in plan:
        options = ["--steps", "30", "--part", str(part), "--stage", str(stage)]
        run_ranks(MODULE, ranks, "relayout", folder, config, *options, timeout=HOURS)
    gaps = []
    for adapter in RELAYOUT:
        fed, gap = same_samples(Path(folder), adapter)
        ids = [sample for micros in fed.values() for micro in micros for row in micro for sample in row]
        assert len(ids) == len(set(ids)), "a sample was fed twice within an epoch"
        gaps.append(gap)
    content = {"steps": len(fed), "samples": len(ids), "worst": max(gaps)}
    (Path(folder) / "samples.json").write_text(json.dumps(content))


def report(folder: Path, steps: int) -> None:
    lines = [__doc__.split("\n", 1)[0], ""]
    rows = [row for path in sorted(folder.glob("equal-*-?.json")) for row in json.loads(path.read_text())]
    (folder / "report.md").write_text("\n".join([*lines, *table(rows)]) + "\n")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Worst difference of a step's loss, over packing on and off, by adapter, ranks, accumulation and stage."""
    lines = ["| dtype | adapter | ranks | accumulation | ZeRO 0 | 1 | 2 | 3 |", "|---|---|---|---|---|---|---|---|"]
    keys = sorted({(r["dtype"], r["adapter"], r["ranks"], r["accumulation"]) for r in rows}, reverse=True)
    for key in keys:
        cells = []
        for stage in range(4):
            found = [
                r["worst"]
                for r in rows
                if (r["dtype"], r["adapter"], r["ranks"], r["accumulation"]) == key and r["stage"] == stage
            ]
            cells.append(f"{max(found):.1e} ({len(found)} runs)" if found else "-")
        lines.append("| " + " | ".join([*map(str, key), *cells]) + " |")
    return lines


if __name__ == "__main__":
    main()
