"""Preemptions, lost nodes, killed scripts and time limits in tens, drawn from a seed, on a real SLURM of six nodes.

    python -m tests.cluster.soak FOLDER --seed 1           an hour; FOLDER under /var/tmp
    python -m tests.cluster.soak FOLDER --parts preempt --number 4
    python -m tests.cluster.soak FOLDER --parts limit --steps 1200      where 400 steps are over before the time is

Two runs (LoRA under ZeRO 2, full under ZeRO 3, two nodes each) are disturbed side by side. Each, when it has come to
its end, is compared with the undisturbed one, and the next is submitted until all events have happened.
Saves are slowed down (`os.fsync` waits up to 0.5 s), so that events fall into them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.chaos.healthy import slow_disk
from tests.cluster.scenario import (
    DEVCLUSTER,
    ROOT,
    VARIANTS,
    Cluster,
    Run,
    as_if_nothing_had_happened,
    environment,
    kill,
    resumed,
)
from tests.e2e.command import about, records, until

NODES, STEPS, EVERY, EVAL_EVERY = 6, 400, 40, 60
PATIENCE = 300.0
LANES = ("lora-zero2", "full-zero3")
HIGH = ("--partition=high", f"--nodes={NODES}", "--exclusive", "--time=1", "--wrap=sleep 2")
LENGTH = (f"checkpoint.every={EVERY}", f"train.eval_every={EVAL_EVERY}")
PHASES = ("the parent", "the imports", "start-up", "a step", "a step", "an evaluation", "a save", "a save")


class Lane:
    """One run after the other of one variant; what happened to them, and what was wrong."""

    def __init__(self, cluster: Cluster, variant: str, options: tuple[str, ...]) -> None:
        self._cluster, self._variant, self._options = cluster, variant, options
        self._numbers = itertools.count()
        self.causes: Counter[str] = Counter()
        self.finished = self.lost = 0
        self.wrong: list[str] = []
        self.run = self._submit()

    def _submit(self) -> Run:
        self.expected = 1  # the attempt that comes next, or runs
        return self._cluster.submit(f"{self._variant}-{next(self._numbers)}", self._variant, *self._options)

    def attempts(self) -> int:
        return len(about(self.run.path)["attempts"]) if (self.run.path / "run.json").exists() else 0

    def began(self, attempt: int) -> bool:
        """Whether this attempt, or a later one, has trained."""
        return self.done() or any(r["attempt"] >= attempt and "loss" in r for r in records(self.run.path))

    def done(self) -> bool:
        return self.run.ended() == "done"

    def next(self) -> None:
        """Another run where this one is done."""
        if self.done():
            self.close()
            self.run = self._submit()

    def close(self) -> None:
        """Let the run come to its end, and compare it."""
        run = self.run
        run.until_done(4 * PATIENCE)
        attempts = about(run.path)["attempts"]
        self.causes.update(kind(attempt["cause"]) for attempt in attempts[:-1])
        self.finished += 1
        try:
            self.lost += as_if_nothing_had_happened(run, run.restarts())
            assert [a["exit_code"] for a in attempts].count(0) == 1, "it was finished more than once"
            for attempt in attempts:
                assert attempt["first_step"] in (None, attempt["commit_before"] + 1), attempt
        except AssertionError as error:
            self.wrong.append(f"{run.path}: {error}")
        print(f"{run.path.name}: {len(attempts)} attempts, {self.wrong or 'as if nothing had happened'}", flush=True)


def kind(cause: str) -> str:
    """The first words, which say what it was."""
    return cause.partition(" (")[0].partition(":")[0]


def begun(lane: Lane, phase: str) -> bool:
    """Whether the lane's run has come to a phase."""
    run, attempt = lane.run.path, lane.expected
    steps = [r["step"] for r in records(run) if r["attempt"] >= attempt and "loss" in r]
    log = run / "logs" / f"attempt-{attempt:03d}" / "rank-0.log"
    return (
        lane.done()
        or {
            "the parent": lambda: lane.attempts() >= attempt,
            "the imports": lambda: log.with_name("node-0.log").exists(),
            "start-up": lambda: log.exists() and log.stat().st_size > 0,
            "a step": lambda: bool(steps),
            "an evaluation": lambda: bool(steps) and steps[-1] % EVAL_EVERY >= EVAL_EVERY - 10,
            "a save": lambda: any(run.glob("checkpoints/.staged-*")),
        }[phase]()
    )


def preempt(lanes: list[Lane], chance: random.Random, number: int) -> None:
    """A job of high priority that wants all nodes, when one of the runs is in a phase."""
    happened, turn = 0, 0
    phases: list[str] = []
    while happened < number:
        phases = phases or chance.sample(PHASES, len(PHASES))
        phase, lane = phases.pop(), lanes[turn % len(lanes)]
        for one in lanes:
            one.next()
        until(lambda lane=lane, phase=phase: begun(lane, phase), phase, PATIENCE, every=0.01)  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 1.0))
        before = [(one, one.run, one.run.restarts()) for one in lanes]
        lane.run.cluster.call("sbatch", "--parsable", "--output=/dev/null", *HIGH)
        for one, run, restarts in before:
            one.expected = one.attempts() + 1
            until(
                lambda one=one, run=run, n=restarts: one.done() or run.restarts() > n,
                "the requeue",
                PATIENCE,
                every=0.2,
            )  # type: ignore[misc]
            happened += run.restarts() - restarts
        turn += 1
        print(f"preempted in {phase} of {lane.run.path.name}: {happened} preemptions", flush=True)


def lose(lanes: list[Lane], chance: random.Random, number: int, act: str, undo: str) -> None:
    """A node of each run is lost at a random moment, and is back when both train again."""
    cluster, happened = lanes[0].run.cluster, 0
    while happened < number:
        lost = []
        for lane in lanes:
            lane.next()
            attempt = max(lane.attempts(), 1)
            until(lambda lane=lane, attempt=attempt: lane.began(attempt), "a step", PATIENCE)  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 3.0))
            if not lane.done():
                lost.append((lane, lane.attempts(), chance.choice(about(lane.run.path)["attempts"][-1]["hosts"])))
                cluster.devcluster(act, lost[-1][2])
        for lane, attempt, node in lost:
            until(lambda lane=lane, n=attempt + 1: lane.began(n), f"a step after {act} of {node}", PATIENCE)  # type: ignore[misc]
            happened += lane.attempts() > attempt
        for *_, node in lost:
            cluster.devcluster(undo, node)
        until(lambda: "down" not in cluster.call("sinfo", "--noheader", "--format=%T"), "all nodes are back", PATIENCE)
        print(f"{act}: {happened} nodes lost", flush=True)


def scripts(lanes: list[Lane], chance: random.Random, number: int) -> None:
    """The batch script is killed at some moment; or, after a signal, it or its policy around the requeue."""
    by_hand, phases = 0, list[str]()
    for happened, lane in zip(range(number), itertools.cycle(lanes), strict=False):
        lane.next()
        phases = phases or chance.sample(PHASES, len(PHASES))
        around, phase = chance.random() < 0.5, phases.pop()
        until(lambda lane=lane, phase=phase: begun(lane, phase), phase, PATIENCE, every=0.01)  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 1.0))
        run, restarts = lane.run, lane.run.restarts()
        with suppress(AssertionError, psutil.NoSuchProcess):  # it has ended meanwhile
            who = kill_around_requeue(run, restarts, chance) if around else kill_script(run)
            print(f"{who} killed in {phase} of {run.path.name}: {happened + 1}", flush=True)
        lane.expected = lane.attempts() + 1
        until(
            lambda run=run, n=restarts: run.ended() == "done" or run.restarts() > n or run.state() == "FAILED",  # type: ignore[misc]
            "the requeue",
            PATIENCE,
            every=0.2,
        )
        if run.ended() != "done" and run.state() == "FAILED":
            by_hand += 1
            run.job = resumed(run)
    print(f"continued by hand: {by_hand}", flush=True)


def kill_script(run: Run) -> str:
    kill(run.script())
    return "script"


def kill_around_requeue(run: Run, restarts: int, chance: random.Random) -> str:
    """Within the half second after the first node has left, in which the policy is at work."""
    run.cluster.call("scancel", "-s", "USR1", run.job)
    left = run.path / "slurm" / f"job-{run.job}-{restarts}" / "node-0.json"
    until(left.exists, "the first node's verdict", PATIENCE, every=0.01)
    delay, policy = chance.uniform(0.0, 0.6), chance.random() < 0.5
    time.sleep(delay)
    found = run.processes(lambda p, e: "launchers.slurm.policy" in p.cmdline()) if policy else [run.script()]
    for process in found:
        kill(process)
    return f"{'policy' if policy else 'script'} ({len(found)}, {delay:.2f} s after the ranks)"


def limits(lanes: list[Lane], number: int) -> None:
    """Jobs that reach their time limit again and again."""

    def happened() -> int:
        return sum(max(lane.attempts() - 1, 0) for lane in lanes) + sum(lane.causes.total() for lane in lanes)

    while happened() < number:
        for lane in lanes:
            lane.next()
        time.sleep(1.0)


@contextmanager
def devcluster(folder: Path, steps: int) -> Iterator[Cluster]:
    """As for the tests, with six nodes."""
    subprocess.run([DEVCLUSTER, "up", f"--nodes={NODES}"], check=True, timeout=300)
    try:
        cluster = Cluster(folder, environment(folder))
        length = (f"train.steps={steps}", *LENGTH, f"data.eval={folder / 'eval.jsonl'}")
        VARIANTS.update({name: (*VARIANTS[name], *length) for name in LANES})
        yield cluster
    finally:
        subprocess.run([DEVCLUSTER, "down"], check=False, timeout=120)


def site(cluster: Cluster, name: str) -> str:
    """The site of the tests, with a disk that takes its time."""
    path = cluster.site(name)
    slow = slow_disk(cluster.folder / "slow", seed=1, seconds=0.5)
    path.write_text(path.read_text().replace("variables = {", f'variables = {{PYTHONPATH = "{slow}:{ROOT}", '))
    return f"--site={path}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, help="events of each part")
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run")
    parser.add_argument("--parts", nargs="*", default=["preempt", "crash", "cut", "script", "limit"])
    args = parser.parse_args()
    folder: Path = args.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    chance = random.Random(args.seed)
    with devcluster(folder, args.steps) as cluster:
        cluster.environment["DISTFT_SITE"] = site(cluster, "low").removeprefix("--site=")
        for variant in LANES:
            cluster.reference(variant)
        wrong = [found for part in args.parts for found in soak(cluster, part, chance, args.number, folder)]
    return 1 if wrong else 0


def soak(cluster: Cluster, part: str, chance: random.Random, number: int | None, folder: Path) -> list[str]:
    signal, clock = site(cluster, "low"), site(cluster, "low-nosignal")
    parts: dict[str, tuple[list[tuple[str, ...]], Callable[[list[Lane]], None]]] = {
        "preempt": ([(signal,), (clock,)], lambda lanes: preempt(lanes, chance, number or 50)),
        "crash": ([(signal,)] * 2, lambda lanes: lose(lanes, chance, number or 10, "crash", "restart")),
        "cut": ([(signal,)] * 2, lambda lanes: lose(lanes, chance, number or 10, "cut", "heal")),
        "script": ([(signal,), (clock,)], lambda lanes: scripts(lanes, chance, number or 40)),
        "limit": ([(signal, "--time=2"), (clock, "--time=1")], lambda lanes: limits(lanes, number or 10)),
    }
    options, disturb = parts[part]
    began = time.monotonic()
    cluster.folder = folder / part
    cluster.folder.mkdir()
    (cluster.folder / "recipe.yaml").write_text((folder / "recipe.yaml").read_text())
    lanes = [Lane(cluster, variant, given) for variant, given in zip(LANES, options, strict=True)]
    disturb(lanes)
    for lane in lanes:
        lane.close()
    wrong = [one for lane in lanes for one in lane.wrong]
    found = {
        "part": part,
        "causes": dict(sum((lane.causes for lane in lanes), Counter[str]())),
        "runs": sum(lane.finished for lane in lanes),
        "steps trained twice": sum(lane.lost for lane in lanes),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "wrong": wrong,
    }
    print(json.dumps(found), flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
