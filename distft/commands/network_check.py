"""`distft submit --check`, one rank of it: report the device, and time an all-reduce with the others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import torch.distributed as td

from distft.process import distributed, environment
from distft.run.folder import this_host

ELEMENTS = 16 << 20  # fp32: 64 MiB
ROUNDS = 3
TIMEOUT_SECONDS = 120


def main() -> None:
    ranks = distributed.init(TIMEOUT_SECONDS)
    device = "CPU"
    if ranks.device.type == "cuda":
        memory = torch.cuda.get_device_properties(ranks.device).total_memory
        device = f"{torch.cuda.get_device_name(ranks.device)}, {memory / 2**30:.0f} GiB"
    print(f"rank {ranks.rank} of {ranks.world} on {this_host()}: {device}", flush=True)
    vector = torch.full((ELEMENTS,), float(ranks.rank + 1), device=ranks.device)
    td.all_reduce(vector)
    right = bool((vector == ranks.world * (ranks.world + 1) / 2).all())
    began = time.perf_counter()
    for _ in range(ROUNDS):
        td.all_reduce(vector)
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / ROUNDS
    [wrong] = distributed.sum_over_ranks([0.0 if right else 1.0])
    if ranks.first:
        # what each link carries: 2 (n - 1) / n of the vector (Patarasuk and Yuan 2009, ring all-reduce)
        rate = 2 * (ranks.world - 1) / ranks.world * ELEMENTS * 4 / seconds / 1e9
        verdict = "correct" if not wrong else "WRONG"
        print(f"all-reduce of 64 MiB over {ranks.world} ranks: {verdict}, {seconds:.3f} s, {rate:.2f} GB/s per link")
        if not wrong:
            (Path(os.environ[environment.CHECK]) / "agreed").touch()
    distributed.leave_group()


if __name__ == "__main__":
    main()
