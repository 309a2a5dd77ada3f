"""Damage to checkpoint files, drawn from a seed. All of it is found before anything is loaded; the one before is used.

python -m tests.chaos.corrupt --seed 1 --number 10000
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from distft.checkpoint import state, store
from distft.engine.optimizer import ADAMW

OLD, NEW = 10, 20
Damage = Callable[[random.Random, Path], str]


def make(checkpoints: Path) -> None:
    """Two checkpoints of a model of two parameters on two ranks, as the writer leaves them."""
    checkpoints.mkdir()
    for step in (OLD, NEW):
        store.prepare_stage(checkpoints, step, needed=0)
        staged, digests = store.stage_folder(checkpoints, step), []
        for rank in range(2):
            tensors = [
                (f"weight|{rank * 40}|{kind}", torch.full((40,), step + rank + 0.5))
                for kind in ("master", *ADAMW.moments)
            ]
            digests.append(store.write_tensors(staged / state.file_of(rank), tensors))
        progress = {"step": step, "next_row": step * 8, "useful_tokens": 1, "last_eval": 0}
        identity = {"base": "b", "rows": "r", "tokenizer": "t", "versions": {}}
        described = {"format": state.FORMAT, "progress": progress, "identity": identity, "adapter": {}}
        described |= {"parameters": {"weight": [80]}}
        digests.append(store.write_text(staged / state.STATE, json.dumps(described)))
        store.commit(checkpoints, step, digests)


def flip(chance: random.Random, path: Path) -> str:
    content = bytearray(path.read_bytes())
    where = chance.randrange(len(content))
    content[where] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return "a bit flipped"


def truncate(chance: random.Random, path: Path) -> str:
    os.truncate(path, chance.randrange(path.stat().st_size))
    return "truncated"


def grow(chance: random.Random, path: Path) -> str:
    with open(path, "ab") as file:
        file.write(chance.randbytes(chance.randint(1, 100)))
    return "grown"


def empty(chance: random.Random, path: Path) -> str:
    path.write_bytes(b"")
    return "emptied"


def remove(chance: random.Random, path: Path) -> str:
    path.unlink()
    return "removed"


def zeros(chance: random.Random, path: Path) -> str:
    """A block that a file system lost."""
    content = bytearray(path.read_bytes())
    where = chance.randrange(len(content))
    lost = slice(where, min(len(content), where + chance.choice((16, 64, 512))))
    content[lost] = b"\xa5" * len(content[lost])
    path.write_bytes(content)
    return "a block lost"


def swap_ranks(chance: random.Random, path: Path) -> str:
    one, other = (path.parent / state.file_of(rank) for rank in range(2))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return "shards swapped"


def older_file(chance: random.Random, path: Path) -> str:
    shutil.copy(store.folder_of(path.parents[1], OLD) / path.name, path)
    return "a file of the older checkpoint"


def older_folder(chance: random.Random, path: Path) -> str:
    shutil.rmtree(path.parent)
    shutil.copytree(store.folder_of(path.parents[1], OLD), path.parent)
    return "all of the older checkpoint"


def half_commit(chance: random.Random, path: Path) -> str:
    for victim in chance.sample(sorted(path.parent.iterdir()), chance.randint(1, 3)):
        victim.unlink()
    return "files missing"


DAMAGES: tuple[Damage, ...] = (
    *(flip, flip, flip, flip, truncate, truncate, grow, empty, remove, zeros),
    *(swap_ranks, older_file, older_folder, half_commit),
)


def run(seed: int, number: int) -> tuple[Counter[str], list[str]]:
    """(how often which damage was done, what was not found or not answered by the older checkpoint)."""
    done: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        good, checkpoints = Path(folder) / "good", Path(folder) / "checkpoints"
        make(good)
        shutil.copytree(good, checkpoints)
        newest = store.folder_of(checkpoints, NEW)
        for index in range(number):
            chance = random.Random(f"{seed} {index}")
            victim = newest / chance.choice(sorted(path.name for path in newest.iterdir()))
            before = {path.name: path.read_bytes() for path in newest.iterdir()}
            what = chance.choice(DAMAGES)(chance, victim)
            if chance.random() < 0.2:
                (checkpoints / f".staged-step-{NEW + 10:08d}").mkdir(exist_ok=True)
            if {path.name: path.read_bytes() for path in newest.iterdir()} == before:
                continue  # the lost block held the same bytes
            done[what] += 1
            if problem := answer(checkpoints):
                wrong.append(f"{index}, {what}, {victim.name}: {problem}")
            shutil.rmtree(checkpoints)
            shutil.copytree(good, checkpoints)
    return done, wrong


def answer(checkpoints: Path) -> str | None:
    """What a rank would do; None where that is right."""
    try:
        folder, passed_over = state.newest(checkpoints)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
        return f"{type(error).__name__}: {error}"
    if folder is None or store.step_of(folder) != OLD:
        return f"{folder} was chosen"
    if len(passed_over) != 1 or "\n" in passed_over[0] or store.folder_of(checkpoints, NEW).name not in passed_over[0]:
        return f"it said {passed_over}"
    stored = state.Stored(folder)
    if not torch.equal(stored.read("weight", "master", 0, 80)[:40], torch.full((40,), OLD + 0.5)):
        return "other weights were read"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=10_000)
    args = parser.parse_args()
    done, wrong = run(args.seed, args.number)
    print(json.dumps({"seed": args.seed, "damaged": done.total(), "not answered": len(wrong), **done}, indent=1))
    print(*wrong[:20], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
