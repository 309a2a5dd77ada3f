"""What runs take on this machine: peaks of every rank and of the export, by the place in the program, as JSON lines.

    python benchmarks/plan_memory.py FOLDER                        all cases of CASES
    python benchmarks/plan_memory.py FOLDER --only lora-zero3      those whose names hold one of these words

Each case is a real `distft train` of three steps with a save and the export, of a random model whose rows are full.
Bases are made beforehand and given as `model.path`, so that no rank remembers how one was made. Beside the run this
process looks at every rank: its pulse says where it is; at each change of place the kernel's record of the peak
(VmHWM) is read and reset; /proc/PID/smaps_rollup gives Pss every 50 ms. The first place that a rank names comes right
after the fork, so what it takes there are the imports.

Memory that torch has freed stays with glibc when a piece is smaller than its threshold for mmap, which grows up to
32 MiB by itself. `--threshold BYTES` fixes it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from distft.process.pulse import BYTES, HEADER

ROOT = Path(__file__).resolve().parents[1]
LOOK_SECONDS, PSS_SECONDS = 0.02, 0.05
MEASURED = ("Rss", "Pss", "Pss_Anon", "Pss_File", "Anonymous")  # of smaps_rollup


@dataclass(frozen=True)
class Case:
    """One recipe. `adapter`: none, lora, adalora; `batch`: rows per step and rank."""

    name: str
    hidden: int = 512
    inner: int = 1408
    layers: int = 8
    vocabulary: int = 4096
    tied: bool = True
    row: int = 128
    micro: int = 1
    batch: int = 1
    ranks: int = 1
    stage: int = 2
    dtype: str = "fp32"
    grad_dtype: str = "fp32"
    adapter: str = "none"
    rank: int = 16
    recompute: bool = False
    architecture: str = "llama"

    @property
    def base(self) -> str:
        sizes = (self.hidden, self.inner, self.layers, self.vocabulary, int(self.tied))
        return f"{self.architecture}-" + "-".join(map(str, sizes))


LARGE = {"hidden": 1024, "inner": 2816, "layers": 8}
CASES = [
    Case("nothing", 64, 64, 1, 512, row=16),
    Case("nothing-2-ranks", 64, 64, 1, 512, row=16, ranks=2),
    Case("full-zero0", stage=0),
    Case("full-zero1-accumulated", stage=1, batch=2),
    Case("full-zero2-long", row=1024, stage=2),
    Case("full-zero2-long-recomputed", row=1024, stage=2, recompute=True),
    Case("full-zero2-2-ranks", **LARGE, stage=2, ranks=2),
    Case("full-zero3-2-ranks", **LARGE, stage=3, ranks=2),
    Case("full-bf16-zero1-2-ranks", **LARGE, stage=1, ranks=2, dtype="bf16", grad_dtype="bf16"),
    Case("full-bf16-zero2-2-ranks", **LARGE, stage=2, ranks=2, dtype="bf16"),
    Case("full-bf16-zero3-4-ranks", stage=3, ranks=4, dtype="bf16"),
    Case("full-logits", vocabulary=16384, layers=4, row=512, micro=2, batch=2, stage=1),
    Case("lora-zero2-2-ranks", **LARGE, adapter="lora", stage=2, ranks=2, row=512),
    Case("lora-bf16-zero2-2-ranks", **LARGE, adapter="lora", stage=2, ranks=2, row=512, dtype="bf16"),
    Case("lora-zero3-2-ranks", **LARGE, adapter="lora", stage=3, ranks=2),
    Case("lora-bf16-zero3-4-ranks-recomputed", **LARGE, adapter="lora", stage=3, ranks=4, dtype="bf16", recompute=True),
    Case("adalora-bf16-zero1", **LARGE, adapter="adalora", stage=1, dtype="bf16", grad_dtype="bf16", row=256),
    Case("adalora-zero0-2-ranks", adapter="adalora", stage=0, ranks=2, row=256, recompute=True),
]


def recipe(case: Case, folder: Path) -> dict[str, Any]:
    adapter: dict[str, Any] = {"type": case.adapter}
    if case.adapter == "lora":
        adapter |= {"r": case.rank}
    elif case.adapter == "adalora":
        adapter |= {"init_r": case.rank, "target_r": case.rank // 2, "tinit": 1, "tfinal": 1, "delta_t": 1}
    return {
        "model": {"path": str(folder / case.base / "base"), "activation_checkpointing": case.recompute},
        "data": {"train": str(folder / "data.jsonl"), "row_tokens": case.row, "cache": str(folder / "cache")},
        "adapter": adapter,
        "train": {
            "steps": 3,
            "lr": 1e-4,
            "global_batch": case.batch * case.ranks,
            "micro_batch": case.micro,
        },
        "engine": {"zero_stage": case.stage, "dtype": case.dtype, "grad_dtype": case.grad_dtype, "loss_chunk": 0},
        "checkpoint": {"every": 2},
    }


def write_data(path: Path) -> None:
    """200 documents of 4,000 random letters: of these no tokenizer makes long tokens, and rows are full."""
    draw = random.Random(0)
    texts = (" ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(800)) for _ in range(200))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def make_base(case: Case, folder: Path) -> None:
    """The product makes it, in a run that ends after one step; its checkpoints and export are not needed."""
    target = folder / case.base
    if (target / "base" / "config.json").exists():
        return
    heads = max(1, case.hidden // 64)
    sizes = {
        "hidden_size": case.hidden,
        "intermediate_size": case.inner,
        "num_hidden_layers": case.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": case.tied,
    }
    first = recipe(replace(case, row=16, micro=1, batch=1, ranks=1, stage=0, adapter="none", dtype="fp32"), folder)
    first["model"] = {
        "init": {"architecture": case.architecture, "vocab_size": case.vocabulary, "config": sizes},
    }
    first["adapter"] = {"type": "partial", "train": ["model.norm.weight"]}
    first["train"]["steps"] = 1
    subprocess.run(command(first, target, 1), env=variables(None), check=True, stdout=subprocess.DEVNULL)


def command(content: dict[str, Any], run: Path, ranks: int) -> list[str]:
    path = run.with_suffix(".yaml")
    path.write_text(json.dumps(content))  # which is YAML too
    return [sys.executable, "-m", "distft", "train", str(path), f"--run-dir={run}", f"--nproc={ranks}"]


def variables(threshold: int | None) -> dict[str, str]:
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own, **({"MALLOC_MMAP_THRESHOLD_": str(threshold)} if threshold is not None else {})}


class Watched:
    """One process: what it took at each place, in the order in which it came there."""

    def __init__(self, pid: int, name: str) -> None:
        self.pid, self.name = pid, name
        self.places: dict[str, dict[str, int]] = {}
        self._pulse: Path | None = None
        self._place = "before its first place"
        self.now: dict[str, int] = {}
        self.hwm = 0

    def look(self, with_pss: bool) -> None:
        """Raises OSError if it has ended."""
        place = self._where()
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = {"hwm": kilobytes(status, "VmHWM"), "rss": kilobytes(status, "VmRSS")}
        if found["hwm"] == 0:
            return  # it is about to end
        self.hwm = max(self.hwm, found["hwm"])
        self._note(self._place, {"hwm": found["hwm"]})
        if place != self._place or with_pss:
            text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
            self.now = {key.lower(): kilobytes(text, key) for key in MEASURED}
        if place != self._place:
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # resets VmHWM
            self._place = place
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
                return self._place
        with self._pulse.open("rb") as file:
            text = file.read(BYTES)
        _, _, _, length = HEADER.unpack(text[: HEADER.size])
        return text[HEADER.size : HEADER.size + length].decode(errors="replace") or self._place


def kilobytes(text: str, key: str) -> int:
    """A figure of a file of /proc, in bytes; 0: it is not there."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found is not None else 0


def measure(case: Case, folder: Path, threshold: int | None) -> dict[str, Any]:
    """Run a case and watch it. Raises SystemExit if it fails."""
    make_base(case, folder)
    run = folder / case.name
    subprocess.run(["rm", "-rf", str(run)], check=True)
    before = {"load": os.getloadavg()[0], "available": psutil.virtual_memory().available}
    said = run.with_suffix(".err")
    began = time.monotonic()
    with said.open("wb") as output:
        process = subprocess.Popen(
            command(recipe(case, folder), run, case.ranks),
            env=variables(threshold),
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    watched, together = watch(process)
    if process.returncode != 0:
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
        "pss_together": together,
        "processes": [{"name": one.name, "hwm": one.hwm, "places": one.places} for one in watched if one not in ranks]
        + [{"name": one.name, "hwm": one.hwm, "places": one.places} for one in ranks],
    }


def watch(process: subprocess.Popen[bytes]) -> tuple[list[Watched], int]:
    """Look at ranks and export until the run has ended. Returns them, and the highest sum of the ranks' Pss."""
    alive: dict[int, Watched] = {}
    ended: list[Watched] = []
    highest, last = 0, 0.0
    while process.poll() is None:
        if due := time.monotonic() - last >= PSS_SECONDS:
            last = time.monotonic()
            for child in children(process.pid):
                with suppress(psutil.NoSuchProcess):
                    if child.pid not in alive and re.match(r"distft-(rank|export)", child.name()):
                        alive[child.pid] = Watched(child.pid, child.name())
        for pid, one in list(alive.items()):
            try:
                one.look(with_pss=due)
            except OSError:
                ended.append(alive.pop(pid))
        highest = max(highest, sum(one.now.get("pss", 0) for one in alive.values() if "rank" in one.name))
        time.sleep(LOOK_SECONDS)
    return [one for one in (*ended, *alive.values()) if one.hwm], highest


def children(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[""], help="words in the names of cases")
    parser.add_argument("--threshold", type=int, help="glibc's threshold for mmap, in bytes")
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data.jsonl").exists():
        write_data(folder / "data.jsonl")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    for case in CASES:
        if any(word in case.name for word in args.only):
            found = {**measure(case, folder, args.threshold), "commit": commit.strip()}
            with (folder / "measured.jsonl").open("a") as file:
                file.write(json.dumps(found) + "\n")
            ranks = [one for one in found["processes"] if one["name"].startswith("distft-rank")]
            peaks = [one["hwm"] >> 20 for one in ranks]
            print(case.name, found["seconds"], peaks, found["pss_together"] >> 20, flush=True)
            subprocess.run(["rm", "-rf", str(folder / case.name)], check=True)


if __name__ == "__main__":
    main()
