"""Twenty minutes under signals, beside transformers' Trainer: how much of the time came to be steps that count.

    python benchmarks/goodput.py FOLDER --minutes 20 --seed 1
    python benchmarks/goodput.py FOLDER --minutes 5 --every Trainer=10 Trainer=40      which interval suits it

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


@dataclass(frozen=True)
class Event:
    """At so many seconds after the beginning."""

    seconds: float
    kill: bool


def events(minutes: float, seed: int) -> list[Event]:
    chance, at = random.Random(seed), 0.0
    found: list[Event] = []
    while (at := at + EVERY_SECONDS * chance.uniform(0.7, 1.3)) < minutes * 60:
        found.append(Event(at, kill=len(found) % KILL_EVERY == KILL_EVERY - 1))
    return found


@dataclass(frozen=True)
class Contender:
    """A side that saves every so many steps, on a core of its own."""

    side: Side
    every: int
    core: int
    run: Path

    @property
    def name(self) -> str:
        return self.run.name


def live(one: Contender, minutes: float, plan: list[Event]) -> None:
    """Start, disturb and start again until the time is over."""
    began = time.monotonic()
    process = launch(one)
    for event in [*plan, Event(minutes * 60, kill=True)]:
        while (left := began + event.seconds - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))
            if process.poll() is not None:  # it ended by itself, as after its grace time it may
                process = launch(one)
        if not event.kill:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                stop(process)
        else:
            stop(process)
        if event.seconds < minutes * 60:
            process = launch(one)


def launch(one: Contender) -> subprocess.Popen[bytes]:
    one.run.mkdir(parents=True, exist_ok=True)
    with open(one.run.parent / f"{one.name}.log", "ab") as output:
        command = ["taskset", "--cpu-list", str(one.core), *one.side.command(one.run, 100_000, one.every)]
        return subprocess.Popen(command, env=environment(), stdout=output, stderr=output)


def outcome(one: Contender, minutes: float, step_seconds: float) -> dict[str, float]:
    steps = one.side.steps(one.run)
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
    parser.add_argument("--every", nargs=2, default=["distft=10", "Trainer=10"], help="steps between saves")
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    set_up(folder, ranks=1)
    sides: dict[str, Side] = {side.name: side for side in (Ours(folder, True, 1), Theirs(folder, True, 1))}
    contenders = []
    for core, given in enumerate(args.every):
        name, _, every = given.partition("=")
        contenders.append(Contender(sides[name], int(every), core, folder / f"{name}-{every}"))
    plan = events(args.minutes, args.seed)
    lives = [threading.Thread(target=live, args=(one, args.minutes, plan)) for one in contenders]
    for thread in lives:
        thread.start()
    for thread in lives:
        thread.join()
    steps = {one.name: one.side.steps(one.run) for one in contenders}
    usual = {name: statistics.median(gaps(lines).values()) for name, lines in steps.items()}
    step_seconds = min(usual.values())
    found = {one.name: outcome(one, args.minutes, step_seconds) for one in contenders}
    losses = {name: {line["step"]: line["loss"] for line in lines} for name, lines in steps.items()}
    common = min(max(lines) for lines in losses.values())
    report = {
        "seed": args.seed,
        "events": len(plan),
        "median_step_seconds": usual,
        "loss": {name: [common, lines[common]] for name, lines in losses.items()},
        **found,
    }
    print(json.dumps(report, indent=1))
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
