"""Sequences of kills, drawn from a seed, with another number of ranks in each attempt: what is fed stays the same.

    python -m tests.chaos.streams FOLDER --seed 1 --number 200

All attempts of all runs are forked from one process; each is otherwise what `distft train` starts. A run is one epoch,
and is killed three to five times in it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from distft.errors import DONE
from distft.process import stop_signals
from distft.recipe.load import load
from distft.run import lease
from distft.run.folder import RunDir, this_host
from launchers.attempt import Phases, Verdict, recorded
from launchers.local import on_this_node, settle_recipe
from launchers.parent import Household, household
from tests.dist.scenario import samples
from tests.e2e.command import RANK_NAME, Workplace, losses

STEPS, EVERY = 24, 3
SETTINGS = (f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "train.micro_batch=1", "track.samples=true")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="go on with this one")
    parser.add_argument("--number", type=int, default=200)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    place = Workplace(args.folder.absolute())
    place.write_records("train.jsonl", 4 * STEPS)  # one row each: an epoch
    os.environ.update(place.environment())
    os.chdir(place.folder)
    stop_signals.listen()
    undisturbed, kills, wrong = RunDir(place.folder / "undisturbed"), 0, []
    undisturbed.path.mkdir(exist_ok=True)
    with household(undisturbed, 1) as home:
        sequence(undisturbed, home, [(1, None)])
        expected = samples(undisturbed.path)
        for number in range(args.first, args.first + args.number):
            chance = random.Random(f"{args.seed} {number}")
            moments = sorted(chance.sample(range(1, STEPS), chance.randint(3, 5)))
            attempts = [(chance.choice((4, 2, 1)), moment) for moment in [*moments, None]]
            run = RunDir(place.folder / f"sequence-{number}")
            run.path.mkdir()
            kills += sequence(run, home, attempts)
            problem = difference(run.path, expected)
            print(f"{number}: (ranks, killed after step) {attempts}: {problem or 'the same samples'}", flush=True)
            if problem:
                wrong.append(number)
            else:
                shutil.rmtree(run.path)
    print(json.dumps({"seed": args.seed, "sequences": args.number, "kills": kills, "wrong": wrong}))
    return 1 if wrong else 0


def sequence(run: RunDir, home: Household, attempts: list[tuple[int, int | None]]) -> int:
    """One attempt after the other; each but the last is killed after a step. Returns how many kills hit: one that
    is to come after the last step but one may find the run finished."""
    recipe = load(Path("recipe.yaml"), [*SETTINGS, "data.packing=false"])
    for kills, (ranks, moment) in enumerate(attempts):
        with lease.hold_run(run, patience=10.0) as held:
            settle_recipe(run, recipe)
            done = threading.Event()
            if moment is not None:
                threading.Thread(target=kill_after, args=(run, moment, done), daemon=True).start()
            phases = Phases(
                partial(on_this_node, run, recipe, held, ranks, home),
                lambda attempt: Verdict(DONE, "what is compared are the samples: nothing is exported"),
            )
            verdict = recorded(run, recipe, held, [this_host()], ranks, phases)
            done.set()
        if verdict.code == DONE:
            return kills
    raise AssertionError(f"{run.path} did not finish: {verdict}")


def kill_after(run: RunDir, step: int, done: threading.Event) -> None:
    while max(losses(run.path), default=0) < step and not done.is_set():
        time.sleep(0.002)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith(RANK_NAME):
                process.kill()


def difference(run: Path, expected: dict[int, list[object]]) -> str | None:
    """A step that two attempts have fed must have been fed the same, and all steps what the undisturbed run fed."""
    found: dict[int, dict[int, object]] = {}
    for path in sorted((run / "logs").glob("*/rank-*.samples.jsonl")):
        for line in path.read_text().splitlines():
            if not line.endswith("}"):  # a kill cuts the last one off
                continue
            record = json.loads(line)
            before = found.setdefault(record["step"], {}).setdefault(record["micro_batch"], record["samples"])
            if before != record["samples"]:
                return f"step {record['step']}, micro-batch {record['micro_batch']}: {before}, then {record['samples']}"
    stream = {step: [micros[index] for index in sorted(micros)] for step, micros in found.items()}
    different = [step for step in expected if stream.get(step) != expected[step]]
    return f"steps {different} were fed other samples" if different or stream.keys() != expected.keys() else None


if __name__ == "__main__":
    sys.exit(main())
