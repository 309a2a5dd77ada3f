"""Twenty minutes under signals, beside transformers' Trainer: how much of the time came to be steps that count.

    python benchmarks/goodput.py FOLDER --minutes 20 --seed 1

Both sides train the same model (100 M parameters, LoRA) on the same rows at the same time, each on a core of its own.
About every 45 s (seeded, the same moments on both sides) the run is sent SIGTERM and has 10 s; every fifth time it is
killed without notice. The same command is given again at once. Useful are the seconds that the steps which stand at the
end take undisturbed, by the median step of both sides; all others are lost.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from against_trainer import Ours, Side, Theirs, environment, gaps, set_up, stop

EVERY_SECONDS, GRACE_SECONDS, KILL_EVERY = 45.0, 10.0, 5
SAVE_EVERY = {"distft": 10, "Trainer": 10}  # steps of about a second; other intervals were not tried yet


@dataclass(frozen=True)
class Event:
    """At so many seconds after the beginning."""

    seconds: float
    kill: bool


def events(minutes: float, seed: int) -> list[Event]:
    chance, found, at = random.Random(seed), [], 0.0
    while (at := at + EVERY_SECONDS * chance.uniform(0.7, 1.3)) < minutes * 60:
        found.append(Event(at, kill=len(found) % KILL_EVERY == KILL_EVERY - 1))
    return found


def live(side: Side, run: Path, core: int, minutes: float, plan: list[Event]) -> None:
    """Start, disturb and start again until the time is over."""
    began = time.monotonic()
    process = launch(side, run, core)
    for event in [*plan, Event(minutes * 60, kill=True)]:
        while (left := began + event.seconds - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
            if process.poll() is not None:  # it ended by itself, as after its grace time it may
                process = launch(side, run, core)
        if not event.kill:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                stop(process)
        else:
            stop(process)
        if event.seconds < minutes * 60:
            process = launch(side, run, core)


def launch(side: Side, run: Path, core: int) -> subprocess.Popen[bytes]:
    run.mkdir(parents=True, exist_ok=True)
    with open(run.parent / f"{run.name}.log", "ab") as output:
        command = ["taskset", "--cpu-list", str(core), *side.command(run, 100_000, SAVE_EVERY[side.name])]
        return subprocess.Popen(command, env=environment(), stdout=output, stderr=output)


def outcome(side: Side, run: Path, minutes: float, step_seconds: float) -> dict[str, float]:
    steps = side.steps(run)
    last = max(line["step"] for line in steps)
    useful = last * step_seconds
    return {
        "steps": last,
        "steps_trained_twice": len(steps) - last,
        "useful_seconds": round(useful, 1),
        "goodput": round(useful / (minutes * 60), 3),
        "lost_seconds": round(minutes * 60 - useful, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    set_up(folder, ranks=1)
    sides: list[Side] = [Ours(folder, True, 1), Theirs(folder, True, 1)]
    runs = {side.name: folder / side.name for side in sides}
    plan = events(args.minutes, args.seed)
    lives = [
        threading.Thread(target=live, args=(side, runs[side.name], core, args.minutes, plan))
        for core, side in enumerate(sides)
    ]
    for thread in lives:
        thread.start()
    for thread in lives:
        thread.join()
    usual = {side.name: statistics.median(gaps(side.steps(runs[side.name])).values()) for side in sides}
    step_seconds = min(usual.values())
    found = {side.name: outcome(side, runs[side.name], args.minutes, step_seconds) for side in sides}
    losses = {side.name: {line["step"]: line["loss"] for line in side.steps(runs[side.name])} for side in sides}
    common = min(max(one) for one in losses.values())
    report = {
        "seed": args.seed,
        "events": len(plan),
        "median_step_seconds": usual,
        "loss": {name: [common, one[common]] for name, one in losses.items()},
        "lost_ratio": round(found["Trainer"]["lost_seconds"] / found["distft"]["lost_seconds"], 2),
        **found,
    }
    print(json.dumps(report, indent=1))
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
