"""What runs take on this machine: peaks of every rank and of the export, by the place in the program, as JSON lines.

    python -m benchmarks.plan_memory FOLDER --seed 1 --threshold 65536             the cases that a seed draws
    python -m benchmarks.plan_memory FOLDER --seed 1 --threshold 65536 --only 3 7  some of these, by their numbers
    python -m benchmarks.plan_memory FOLDER --threshold 65536                      a model of next to nothing

Each case is a real `distft train` of two to four steps, with a save before the last one, and the export; its random
model has rows that are full. Bases are made beforehand and given as `model.path`, so that no rank remembers how one was
made. Beside the run this process looks at every rank: its pulse says where it is; at each change of place the kernel's
record of the peak (VmHWM) is read and reset. Pss takes the kernel long to find out (/proc/PID/smaps_rollup, 70 ms for a
GB), so it is asked 5 times a second. Runs have less priority than this process, which would look too seldom otherwise.
The first place that a rank names comes right after the fork, so what it takes there are the imports.

Memory that torch has freed stays with glibc when a piece is smaller than its threshold for mmap, which grows up to
32 MiB by itself. `--threshold BYTES` fixes it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

from benchmarks.plan_cases import MIB, Case, content, draw, write_data
from distft.errors import DONE, PREEMPTED
from distft.model.context import RunContext
from distft.process.pulse import BYTES, HEADER
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir

ROOT = Path(__file__).resolve().parents[1]
ENDED = (DONE, PREEMPTED)  # exit codes; that of a run whose export was stopped is the second
NICE = 5
LOOK_SECONDS, PSS_SECONDS = 0.01, 0.2
MEASURED = ("Rss", "Pss", "Pss_Anon", "Pss_File", "Anonymous")  # of smaps_rollup


NOTHING = Case("nothing", 64, 64, 1, 512, row=16)
SMALLEST = [
    NOTHING,
    *(replace(NOTHING, name=f"nothing-{ranks}-ranks", ranks=ranks) for ranks in (2, 4)),
    *(replace(NOTHING, name=f"nothing-bf16-zero{stage}", stage=stage, dtype="bf16") for stage in (2, 3)),
    *(replace(NOTHING, name=f"nothing-lora-zero{stage}", stage=stage, adapter="lora", rank=1) for stage in (0, 2, 3)),
    replace(NOTHING, name="nothing-adalora", adapter="adalora", rank=2),
    replace(NOTHING, name="nothing-deep-zero0", layers=48, stage=0),
    replace(NOTHING, name="nothing-deep-zero3", layers=48, stage=3),
    replace(NOTHING, name="nothing-deep-lora-zero0", layers=48, stage=0, adapter="lora", rank=1),
    replace(NOTHING, name="nothing-deep-lora-zero3", layers=48, stage=3, adapter="lora", rank=1),
    replace(NOTHING, name="nothing-bert", architecture="bert", task="masked-lm"),
    replace(NOTHING, name="nothing-gpt2", architecture="gpt2"),
]


def drawn(folder: Path, seed: int, count: int, memory: float) -> list[Case]:
    """The cases of a seed; those that were drawn once stay, whatever the plan says of them later."""
    path = folder / f"cases-{seed}.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps(asdict(case)) + "\n" for case in draw(seed, count, memory)))
    return [Case(**json.loads(line)) for line in path.read_text().splitlines()]


def make_base(case: Case, folder: Path) -> Path:
    """The product makes it, in a process of its own."""
    target = folder / case.base

    def make() -> None:
        os.nice(NICE)
        recipe = Recipe.model_validate(content(replace(case, dtype="fp32"), folder))
        print(RunContext(RunDir(target), recipe, starts=True).base)

    if not (target / "base" / "config.json").exists():
        target.mkdir(exist_ok=True)
        child = get_context("fork").Process(target=make)
        child.start()
        child.join()
    return target / "base"


def command(content: dict[str, Any], run: Path, ranks: int) -> list[str]:
    path = run.with_suffix(".yaml")
    path.write_text(json.dumps(content))  # which is YAML too
    return [
        "nice",
        "-n",
        str(NICE),
        sys.executable,
        "-m",
        "distft",
        "train",
        str(path),
        f"--run-dir={run}",
        f"--nproc={ranks}",
    ]


def variables(threshold: int | None) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own, **({"MALLOC_MMAP_THRESHOLD_": str(threshold)} if threshold is not None else {})}


class Watched:
    """One process: what it took at each place, in the order in which it came there."""

    def __init__(self, pid: int, name: str) -> None:
        self.pid, self.name = pid, name
        self.places: dict[str, dict[str, int]] = {}
        self._pulse: Path | None = None
        self.place = "before its first place"
        self.now: dict[str, int] = {}
        self.hwm = 0

    def look(self, with_pss: bool) -> None:
        """Raises OSError if it has ended."""
        place = self._where()
        status = Path(f"/proc/{self.pid}/status").read_text()
        if not (found := kilobytes(status, "VmHWM")):
            return  # it is about to end
        self.hwm = max(self.hwm, found)
        self._note(self.place, {"hwm": found})
        if place != self.place or with_pss:
            text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
            self.now = {key.lower(): kilobytes(text, key) for key in MEASURED}
            self.now["shared"] = self.now["rss"] - self.now["pss"]
        if place != self.place:
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # resets VmHWM
            self.place = place
            if place not in self.places:
                self.places[place] = {f"first_{key}": value for key, value in self.now.items()}
        self._note(place, self.now)

    def _note(self, place: str, found: dict[str, int]) -> None:
        most = self.places.setdefault(place, {})
        most.update({key: max(value, most.get(key, 0)) for key, value in found.items()})

    def _where(self) -> str:
        if self._pulse is None:
            for link in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(OSError):
                    if "distft-pulse" in os.readlink(link):
                        self._pulse = link
                        break
            else:
                return self.place
        with self._pulse.open("rb") as file:
            text = file.read(BYTES)
        _, _, _, length = HEADER.unpack(text[: HEADER.size])
        return text[HEADER.size : HEADER.size + length].decode(errors="replace") or self.place


def kilobytes(text: str, key: str) -> int:
    """A figure of a file of /proc, in bytes; 0: it is not there."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found is not None else 0


def measure(case: Case, folder: Path, threshold: int | None, with_export: bool) -> dict[str, Any]:
    """Run a case and watch it. Raises SystemExit if it fails."""
    if not (folder / case.data).exists():
        write_data(case, folder)
    recipe = content(case, folder)
    recipe["model"] = {"path": str(make_base(case, folder)), "activation_checkpointing": case.recompute}
    run = folder / case.name
    subprocess.run(["rm", "-rf", str(run)], check=True)
    before = {"load": os.getloadavg()[0], "available": psutil.virtual_memory().available}
    said = run.with_suffix(".err")
    began = time.monotonic()
    with said.open("wb") as output:
        process = subprocess.Popen(
            command(recipe, run, case.ranks),
            env=variables(threshold),
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    watched, together = watch(process, case.ranks, with_export)
    if process.returncode not in ENDED:
        sys.exit(f"{case.name} ended with {process.returncode}: {said.read_text()[-2000:]}")
    counts = re.search(r"([\d,]+) of ([\d,]+) parameters", said.read_text())
    assert counts is not None
    trained, total = (int(count.replace(",", "")) for count in counts.groups())
    ranks = sorted((one for one in watched if one.name.startswith("distft-rank")), key=lambda one: one.name)
    return {
        "case": asdict(case),
        "threshold": threshold,
        "before": before,
        "seconds": round(time.monotonic() - began, 1),
        "trained": trained,
        "total": total,
        "together": together,
        "processes": [{"name": one.name, "hwm": one.hwm, "places": one.places} for one in watched if one not in ranks]
        + [{"name": one.name, "hwm": one.hwm, "places": one.places} for one in ranks],
    }


def watch(process: subprocess.Popen[bytes], ranks: int, with_export: bool) -> tuple[list[Watched], dict[str, Any]]:
    """Look at ranks and export until the run has ended. Returns them, and what the ranks took together at most."""
    alive: dict[int, Watched] = {}
    ended: list[Watched] = []
    together, last = Together(ranks), 0.0
    while process.poll() is None:
        if due := time.monotonic() - last >= PSS_SECONDS:
            last = time.monotonic()
            for child in children(process.pid):
                with suppress(psutil.NoSuchProcess):
                    if (name := child.name()).startswith("distft-"):
                        alive.setdefault(child.pid, Watched(child.pid, name)).name = name  # a fork gets it later
        for pid, one in list(alive.items()):
            try:
                one.look(with_pss=due)
            except OSError:
                ended.append(alive.pop(pid))
        if due:  # of all ranks at once: a file that one has let go is all the others'
            together.look(list(alive.values()))
        if not with_export and any(one.name == "distft-export" for one in alive.values()):
            process.terminate()
        time.sleep(LOOK_SECONDS)
    return [one for one in (*ended, *alive.values()) if one.hwm], asdict(together)


@dataclass
class Together:
    """Bytes of all ranks by Pss, in which a page that several processes have counts once.

    Attributes:
        imports: of all ranks when the last one was forked.
        pss, file: at most, and how much of that are pages of files.
        places: where each rank was then, and its Pss.
        server: Pss of the fork server then, whose pages ranks share until they write to them.
    """

    ranks: int
    imports: int = 0
    pss: int = 0
    file: int = 0
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    server: int = 0

    def look(self, watched: list[Watched]) -> None:
        ranks = [one for one in watched if one.name.startswith("distft-rank") and one.now]
        total = sum(one.now["pss"] for one in ranks)
        if not self.imports and len(ranks) == self.ranks:
            self.imports = total
        if total > self.pss:
            self.pss, self.file = total, sum(one.now["pss_file"] for one in ranks)
            self.places = {one.name: (one.place, one.now["pss"]) for one in ranks}
            self.server = sum(one.now.get("pss", 0) for one in watched if one.name == "distft-fork")


def children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, help="draws the cases")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--memory", type=float, default=12.0, help="most GiB of all ranks of a case, as predicted")
    parser.add_argument("--only", nargs="*", type=int, default=[], help="numbers of cases, from 1")
    parser.add_argument("--threshold", type=int, help="glibc's threshold for mmap, in bytes")
    parser.add_argument("--without-export", action="store_true", help="stop a run when its export begins")
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    cases = SMALLEST if args.seed is None else drawn(folder, args.seed, args.count, args.memory * 1024 * MIB)
    for number, case in enumerate(cases, 1):
        if args.only and number not in args.only:
            continue
        found = {**measure(case, folder, args.threshold, not args.without_export), "commit": commit.strip()}
        with (folder / "measured.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")
        ranks = [one for one in found["processes"] if one["name"].startswith("distft-rank")]
        peaks = [one["hwm"] >> 20 for one in ranks]
        print(case.name, found["seconds"], peaks, found["together"]["pss"] >> 20, flush=True)
        for path in (folder / case.name, folder / case.base):
            subprocess.run(["rm", "-rf", str(path)], check=True)


if __name__ == "__main__":
    main()
