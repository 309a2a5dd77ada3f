"""Thousands of healthy steps on a disk that is slow: no alarm.

    python -m tests.chaos.healthy FOLDER --seed 1 --steps 5000

The disk's slowness is the only thing made up: `os.fsync` of anything in a checkpoint waits for up to 45 s first, longer
than a rank may give no sign of life.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.e2e.command import Workplace, about, losses, records

RANKS, SAVES = 4, 5
SLOW = """\
import os, random, time
_sync, _chance = os.fsync, random.Random({seed})
def fsync(descriptor):
    if "/checkpoints" in os.readlink(f"/proc/self/fd/{{descriptor}}"):
        time.sleep(_chance.uniform(0.0, {seconds}))
    _sync(descriptor)
os.fsync = fsync
"""


def slow_disk(folder: Path, seed: int, seconds: float) -> Path:
    """A folder for PYTHONPATH with which each sync of a file in a checkpoint takes up to `seconds` more."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SLOW.format(seed=seed, seconds=seconds))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5000)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    slow = slow_disk(args.folder.absolute() / "slow", args.seed, seconds=45.0)
    place, run = Workplace(args.folder.absolute()), args.folder.absolute() / "healthy"
    settings = (
        f"train.steps={args.steps}",
        "train.micro_batch=1",
        f"checkpoint.every={args.steps // SAVES}",
        f"train.eval_every={args.steps // SAVES // 2}",
        "data.eval=train.jsonl",
        "engine.timeout=300",
        f"--nproc={RANKS}",
    )
    environment = {"PYTHONPATH": f"{slow}:{Path(__file__).parents[2]}"}
    with place.start("train", "recipe.yaml", *settings, f"--run-dir={run}", environment=environment) as only:
        ended = only.end(3600.0)
    [attempt] = about(run)["attempts"]
    saves = [record["save_seconds"] for record in records(run) if "save_seconds" in record]
    found = {
        "seed": args.seed,
        "steps": len(losses(run)),
        "save_seconds": [round(seconds) for seconds in saves],
        "exit": ended.code,
        "cause": attempt["cause"],
    }
    print(json.dumps(found))
    return 0 if ended.code == 0 and len(losses(run)) == args.steps and max(saves) > 30 else 1


if __name__ == "__main__":
    sys.exit(main())
