"""How long a rank takes to continue from a checkpoint that hundreds of ranks wrote, and how many files it opens.

    python benchmarks/many_ranks.py FOLDER          minutes; --layers 80 has as many tensors as a Llama of 70 B

A checkpoint as 256 ranks of ZeRO 3 write it is made from small tensors: what is measured is the opening and looking
up, which depend on the number of files and tensors, and not the reading, which depends on their size. One process
after the other then takes the place of a rank, of the same number of ranks or of another.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

WRITERS = 256
HIDDEN = 64
KINDS = ("master", "exp_avg", "exp_avg_sq")
STEP = 1


def shapes(layers: int) -> dict[str, list[int]]:
    """Names as Llama's, small."""
    layer = {f"self_attn.{name}_proj.weight": [HIDDEN, HIDDEN] for name in "qkvo"}
    layer |= {f"mlp.{name}_proj.weight": [HIDDEN, 2 * HIDDEN] for name in ("gate", "up", "down")}
    layer |= {f"{name}_layernorm.weight": [16 * HIDDEN] for name in ("input", "post_attention")}
    found = {f"model.layers.{index}.{name}": shape for index in range(layers) for name, shape in layer.items()}
    return {"model.embed_tokens.weight": [512, HIDDEN], **found, "lm_head.weight": [512, HIDDEN]}


def shard(shape: list[int], rank: int, world: int) -> tuple[int, int]:
    """(offset, numel) of what a rank of ZeRO 3 holds of a parameter."""
    numel = math.prod(shape)
    each = -(-numel // world)
    return rank * each, max(0, min(each, numel - rank * each))


def write(folder: Path, layers: int) -> None:
    import torch

    from distft.checkpoint import state, store

    all_shapes = shapes(layers)
    store.prepare_stage(folder, STEP, 0)
    staged = store.stage_folder(folder, STEP)
    digests = []
    for rank in range(WRITERS):
        pieces = []
        for name, shape in all_shapes.items():
            offset, numel = shard(shape, rank, WRITERS)
            if numel:
                value = torch.arange(offset, offset + numel, dtype=torch.float32)
                pieces += [(f"{name}|{offset}|{kind}", value) for kind in KINDS]
        digests.append(store.write_tensors(staged / state.file_of(rank), pieces))
    about: dict[str, Any] = {
        "format": state.FORMAT,
        "progress": {"step": STEP, "next_row": 1, "useful_tokens": 1, "last_eval": 0},
        "identity": {"base": "", "rows": "", "tokenizer": "", "versions": {}},
        "optimizer": {"id": "adamw", "step": STEP, "tensors": list(KINDS[1:])},
        "adapter": {},
        "parameters": all_shapes,
    }
    digests.append(store.write_text(staged / state.STATE, json.dumps(about)))
    store.commit(folder, STEP, digests)


def restore(folder: Path, rank: int, world: int) -> dict[str, Any]:
    """What a rank reads, and the seconds and opened files that this takes."""
    import torch

    from distft.checkpoint import state, store

    began = time.perf_counter()
    stored = state.Stored(store.folder_of(folder, STEP), (rank + 0.5) / world)
    for name, shape in stored.shapes.items():
        offset, numel = shard(list(shape), rank, world)
        for kind in KINDS if numel else ():
            value = stored.read(name, kind, offset, numel)
            assert torch.equal(value, torch.arange(offset, offset + numel, dtype=torch.float32))
    seconds = time.perf_counter() - began
    maps = Path("/proc/self/maps").read_text()
    opened = len({line.split()[-1] for line in maps.splitlines() if "rank-" in line})
    return {"rank": rank, "world": world, "seconds": round(seconds, 2), "files": opened}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--as", nargs=2, type=int, metavar=("RANK", "WORLD"), dest="one", help="one process's part")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(restore(args.folder, *args.one)))
        return
    if not (args.folder / "step-00000001").exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        write(args.folder, args.layers)
    for world in (WRITERS, WRITERS // 2, 2 * WRITERS, 192, 1):
        for rank in sorted({0, world // 3, world - 1}):
            command = [sys.executable, __file__, str(args.folder), "--as", str(rank), str(world)]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
