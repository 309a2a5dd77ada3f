"""How equally ranks are loaded: packed rows of a step as they come, and sorted by cost (`data.balance`).

    python -m benchmarks.balance [--documents 100000]      a minute; one process, numpy only

Lengths are bytes / 4 of records of GSM8K and of conversations, drawn with replacement, or lognormal (median 245 tokens,
sigma 1). What a row takes: 12 * hidden * tokens + lengths squared, up to a factor, which is a causal decoder's with
attention within documents (24 * hidden^2 a token in a layer's matrices, 2 * hidden * length in attention). `sums`: the
largest sum of a rank over its micro-batches in a step, beside the mean of all ranks, as where ranks meet once a step;
`turns`: the sum of the largest of each turn of micro-batches, as where they meet in each (ZeRO 3). Means of the steps.
"""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.packing import lengths
from distft.data.loader import Shuffle, by_cost
from distft.data.packing import pack

HIDDEN, SEED, STEPS = 2048, 0, 200


def loads(costs: npt.NDArray[np.float64], ranks: int) -> tuple[float, float]:
    """(sums, turns) of steps. `costs`: float64 [steps, rows], rows in the order of their micro-batches, one each."""
    turns = costs.reshape(len(costs), -1, ranks)
    mean = costs.sum(axis=1) / ranks
    sums = turns.sum(axis=1).max(axis=1) / mean
    return float(sums.mean()), float((turns.max(axis=2).sum(axis=1) / mean).mean())


def case(kind: str, documents: int, row_tokens: int, ranks: int, each: int) -> dict[str, Any] | None:
    """`each`: micro-batches of a rank in a step. None: there are too few rows."""
    sizes = lengths(kind, documents, row_tokens)
    rows = pack(sizes, row_tokens, SEED)
    batch = ranks * each
    steps = min(STEPS, len(rows) // batch)
    if steps < 3:
        return None
    shuffle = Shuffle(SimpleNamespace(sizes=sizes), rows, SEED, apart=True)  # type: ignore[arg-type]
    ends = rows.offsets[:-1]
    tokens = np.add.reduceat(sizes[rows.documents].astype(np.float64), ends)
    squares = np.add.reduceat(sizes[rows.documents].astype(np.float64) ** 2, ends)
    takes = 12 * HIDDEN * tokens + squares
    order = shuffle._order(0)
    plain = [range(step * batch, (step + 1) * batch) for step in range(steps)]
    found: dict[str, Any] = {"rows": len(rows)}
    for name, places in (("as they come", plain), ("sorted", [by_cost(shuffle, step) for step in plain])):
        sums, turns = loads(takes[order[np.array([list(step) for step in places])]], ranks)
        found[name] = {"sums": round(sums, 4), "turns": round(turns, 4)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200_000)
    args = parser.parse_args()
    for kind in ("gsm8k", "chat", "lognormal"):
        for row_tokens in (1024, 4096, 8192, 32768):
            for ranks in (8, 64):
                for each in (1, 8):
                    found = case(kind, args.documents, row_tokens, ranks, each)
                    about = {"lengths": kind, "row_tokens": row_tokens, "ranks": ranks, "micro_batches": each}
                    if found:
                        print(json.dumps(about | found), flush=True)


if __name__ == "__main__":
    main()
