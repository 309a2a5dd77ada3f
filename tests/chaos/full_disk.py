"""Disks that fill up under a run, drawn from a seed; when room was made, the same command continues it.

    python -m tests.chaos.full_disk FOLDER --seed 1 --trials 20

The disk is a small file system of its own in memory (root mounts it). It is filled after a step that is drawn, to a
rest that is drawn too: nothing, or as much as a part of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.chaos.plan import EVERY, STEPS, Configuration
from tests.chaos.trial import Ground, differences
from tests.e2e.command import about, losses, until

MOST_ATTEMPTS = 5
RESTS = (0, 0, 4096, 40_000, 120_000)  # bytes


@contextmanager
def disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)
        path.rmdir()


def fill(folder: Path, rest: int) -> Path:
    """Leave at most `rest` bytes free."""
    filler = folder / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while shutil.disk_usage(folder).free > rest:
            file.write(bytes(4096))
    return filler


def trial(ground: Ground, chance: random.Random, number: int) -> tuple[dict[str, object], list[str]]:
    """What was done, and what is wrong with what came out."""
    configuration = Configuration(chance.choice(("lora", "full")), chance.choice((1, 2, 3)), "fp32", 2)
    step, rest = chance.randrange(1, STEPS - EVERY), chance.choice(RESTS)
    told: dict[str, object] = {"trial": number, "configuration": str(configuration), "step": step, "rest": rest}
    undisturbed = ground.undisturbed(configuration)
    with disk(ground.place.folder / f"disk-{number}") as mounted:
        run = mounted / "run"
        command = ground.command(configuration, run)
        with ground.place.start(*command) as first:
            until(lambda: max(losses(run), default=0) >= step, f"step {step}", 300.0, every=0.005)
            filler = fill(mounted, rest)
            ended = first.end(300.0)
        told |= {"code": ended.code, "cause": about(run)["attempts"][-1]["cause"]}
        wrong = [] if ended.code == 0 or "no space left" in ended.err else [f"it does not say why: {ended.err[-300:]}"]
        if "Traceback" in ended.err:
            wrong.append("a traceback")
        filler.unlink()
        attempts = 0
        while about(run)["state"] != "done" and attempts < MOST_ATTEMPTS:
            ended, attempts = ground.place.run(*command), attempts + 1
        if ended.code != 0:
            return told, [*wrong, f"it did not continue: {ended.err[-500:]}"]
        return told | {"continued": attempts, "lines cut off": drop_cut_lines(run)}, wrong + differences(
            run, undisturbed
        )


def drop_cut_lines(run: Path) -> int:
    """Remove from metrics.jsonl what has no room for its end; whoever reads a run passes over such lines."""
    whole, cut = [], 0
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            json.loads(line)
            whole.append(line)
        except ValueError:
            cut += 1
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in whole))
    return cut


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    ground, wrong, hit = Ground(args.folder.absolute()), [], 0
    for number in range(args.trials):
        told, found = trial(ground, random.Random(f"{args.seed} {number}"), number)
        hit += told["code"] != 0
        print(json.dumps(told | {"wrong": found}), flush=True)
        wrong += [number] if found else []
    print(json.dumps({"seed": args.seed, "trials": args.trials, "disks that stopped a run": hit, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
