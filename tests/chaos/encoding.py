"""Kills in the middle of encoding, drawn from a seed: the bytes of the token cache are those of an undisturbed run.

    python -m tests.chaos.encoding FOLDER --seed 1 --kills 50              about a quarter of an hour
    python -m tests.chaos.encoding FOLDER --seed 1 --kills 6 --nodes

`distft encode` is killed, all of it or one of its processes, and given again until it is done; then other data come,
until there were so many kills. With `--nodes` a run on two nodes (two light parents on this machine) encodes, and one
of the nodes is killed, or both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.e2e.command import DISTFT, Workplace, until
from tests.e2e.nodes import two_nodes

RECORDS = 280_000  # four parts
CHILD = "distft-child"  # of a process, in ps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--nodes", action="store_true")
    args = parser.parse_args()
    kills, wrong = trials(args.folder.absolute(), args.seed, args.kills, args.nodes)
    print(json.dumps({"seed": args.seed, "nodes": args.nodes, "kills": kills, "wrong": wrong}))
    return 1 if wrong else 0


def trials(folder: Path, seed: int, most: int, nodes: bool) -> tuple[int, list[int]]:
    """So many kills. Returns how many hit, and the numbers of the data sets that did not come out right."""
    folder.mkdir(parents=True, exist_ok=True)
    place, chance, first = Workplace(folder), random.Random(seed), folder / "first"
    if not first.exists():
        assert place.run("train", "recipe.yaml", "train.steps=1", "--run-dir", first).code == 0
    kills, number, wrong = 0, 0, []
    while kills < most:
        number += 1
        place.write_records("many.jsonl", RECORDS, seed=seed * 1000 + number)
        settings = ("data.train=many.jsonl", f"model={{path: {first / 'base'}}}", "train.steps=1")
        expected = of_files(encoded(place, settings, "undisturbed"))
        hit = (by_nodes if nodes else by_command)(place, settings, chance, most - kills)
        if of_files(encoded(place, settings, "killed")) != expected:
            wrong.append(number)
        kills += hit
        print(f"{number}: {hit} kills: {'OTHER BYTES' if number in wrong else 'the same bytes'}", flush=True)
        for name in ("undisturbed", "killed"):
            shutil.rmtree(folder / name)
    return kills, wrong


def cache_of(place: Workplace, name: str) -> str:
    return f"data.cache={place.folder / name}"


def encoded(place: Workplace, settings: tuple[str, ...], cache: str) -> Path:
    """The folder of the token cache, filled by a command that nobody disturbs, or goes on after kills."""
    ended = place.run("encode", "recipe.yaml", *settings, cache_of(place, cache))
    assert ended.code == 0, ended.err
    [line] = [line for line in ended.out.splitlines() if line.startswith("  in ")]
    return Path(line.split()[1])


def of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kept(place: Workplace) -> set[tuple[str, int]]:
    """What there is of parts, by name and time: another one when something was kept or a part was begun."""
    found = set()
    for path in (place.folder / "killed" / "tokens").glob("*.part/**/*"):
        with suppress(OSError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


@contextmanager
def command(place: Workplace, settings: tuple[str, ...]) -> Iterator[subprocess.Popen[bytes]]:
    """`distft encode` in a process group of its own."""
    process = subprocess.Popen(
        [DISTFT, "encode", "recipe.yaml", *settings, cache_of(place, "killed")],
        cwd=place.folder,
        env=place.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def by_command(place: Workplace, settings: tuple[str, ...], chance: random.Random, most: int) -> int:
    """Kills until it is done. Returns how many hit."""
    for kills in range(most):
        whom, seconds = chance.choice(("all", "the command", "a child")), chance.uniform(0.0, 8.0)
        with command(place, settings) as process:
            before = kept(place)
            until(lambda before=before, its=process: kept(place) != before or its.poll() is not None, "it encodes")  # type: ignore[misc]
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            if process.poll() is not None:
                assert process.returncode == 0
                return kills
            children = [one for one in psutil.Process(process.pid).children() if one.name() == CHILD]
            if whom == "all" or (whom == "a child" and not children):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                (process if whom == "the command" else chance.choice(children)).kill()
            process.wait(60.0)
            print(f"  {whom} after {seconds:.1f} s, exit {process.returncode}", flush=True)
    return most


def by_nodes(place: Workplace, settings: tuple[str, ...], chance: random.Random, most: int) -> int:
    """Kills nodes of a run, whose next start goes on. Returns how many kills hit."""
    run = place.folder / f"run-{chance.randrange(10**9)}"
    for kills in range(most):
        whom, seconds = chance.choice(((0,), (1,), (0, 1))), chance.uniform(0.0, 8.0)
        with two_nodes(place, run, *settings, cache_of(place, "killed")) as nodes:
            before, begun = kept(place), time.monotonic()

            def over() -> bool:
                return any(parent.poll() is not None for parent in nodes.parents)

            until(lambda before=before: kept(place) != before or over(), "it encodes")  # type: ignore[misc]
            ends = time.monotonic() + seconds
            while time.monotonic() < ends and not is_whole(place):
                time.sleep(0.05)
            if is_whole(place):
                return kills
            helped = {child.name() for child in psutil.Process(nodes.parents[1].pid).children(recursive=True)}
            for index in whom:
                nodes.parents[index].kill()
            if whom == (1,):  # the first node goes on alone
                until(lambda: is_whole(place), "the first node encodes what the other one had taken")
            waited = time.monotonic() - begun
            print(f"  nodes {whom} after {seconds:.1f} s, {CHILD in helped=}, {waited:.1f} s in all", flush=True)
    return most


def is_whole(place: Workplace) -> bool:
    found = (place.folder / "killed" / "tokens").glob("*/meta.json")
    return any(json.loads(path.read_text())["records"] == RECORDS for path in found)


if __name__ == "__main__":
    sys.exit(main())
