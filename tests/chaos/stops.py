"""Ranks that are stopped, drawn from a seed: the right one is named each time, and the run comes out the same.

python -m tests.chaos.stops FOLDER --seed 1 --number 40        about half a minute each
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import time
from pathlib import Path

import psutil

from tests.e2e.command import Workplace, about, losses, records, until

RANKS, EVERY = 4, 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=40)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    place, chance, named = Workplace(args.folder.absolute()), random.Random(args.seed), []
    steps = 15 * (args.number + 1)
    settings = (f"train.steps={steps}", f"checkpoint.every={EVERY}", "train.micro_batch=1", f"--nproc={RANKS}")
    undisturbed, run = place.folder / "undisturbed", place.folder / "stopped"
    assert place.run("train", "recipe.yaml", *settings, f"--run-dir={undisturbed}").code == 0
    with place.start("train", "recipe.yaml", *settings, f"--run-dir={run}", "--max-restarts=1000") as only:
        for number in range(1, args.number + 1):
            until(lambda number=number: began(run, number) > 2 * EVERY, f"attempt {number} trains", 120.0)  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 1.0))
            victim = chance.randrange(RANKS)
            process: psutil.Process = only.ranks()[victim]
            process.send_signal(signal.SIGSTOP)
            until(lambda number=number: len(about(run)["attempts"]) > number, "the next attempt", 120.0)  # type: ignore[misc]
            cause = about(run)["attempts"][number - 1]["cause"]
            right = cause.startswith(f"hang: rank {victim} on ")
            named.append(right)
            print(f"{number}: rank {victim} stopped: {cause}: {'right' if right else 'WRONG'}", flush=True)
        ended = only.end(600.0)
    same = {s: set(v) for s, v in losses(run).items()} == {s: set(v) for s, v in losses(undisturbed).items()}
    print(json.dumps({"seed": args.seed, "stopped": len(named), "named": sum(named), "exit": ended.code, "same": same}))
    return 0 if all(named) and same and ended.code == 0 else 1


def began(run: Path, attempt: int) -> int:
    """Steps that an attempt has recorded."""
    return sum(record["attempt"] == attempt and "loss" in record for record in records(run))


if __name__ == "__main__":
    sys.exit(main())
