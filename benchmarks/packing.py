"""What rows cost: CPU time and memory of packing, of finding packed rows again, of another length of a row, of
duplicates, and of reading a step's documents.

    python -m benchmarks.packing [--documents 1e6 1e7]      three minutes; one process, one core

Lengths are bytes / 4 of records of GSM8K and of conversations, drawn with replacement, or lognormal. Padding stands
beside the least that any packing could have: as many rows as hold all tokens. A line of JSON per case, each measured in
a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from distft.data import order, row_index
from distft.data.corpus import CacheFolder, Corpus, Meta
from distft.data.cutting import cut_to_rows
from distft.data.duplicates import count_duplicates, find_twins
from distft.data.loader import RowLoader, Shuffle, Slots
from distft.data.packing import one_per_row, pack
from distft.data.pieces import MarkedCut

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FILES = {"gsm8k": "gsm8k/train.jsonl", "chat": "chat/alpaca_en_demo.json"}
ROW_TOKENS, SEED, STEPS = 2048, 0, 200


def lengths(kind: str, count: int, most: int = ROW_TOKENS) -> row_index.Sizes:
    """Tokens of so many documents, int32, `most` at most."""
    chance = np.random.default_rng(0)
    if kind == "lognormal":
        drawn = np.exp(chance.normal(5.5, 1.0, count))
    else:
        text = (DATA / FILES[kind]).read_text(encoding="utf-8")
        records = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        drawn = chance.choice([len(" ".join(map(str, record.values())).encode()) / 4 for record in records], count)
    return np.clip(drawn, 1, most).astype(np.int32)


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[float, float, Any]:
    """CPU seconds, wall seconds, and what it returns."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = work(*arguments)
    return time.process_time() - cpu, time.perf_counter() - wall, found


def packing(kind: str, count: int) -> dict[str, Any]:
    sizes = lengths(kind, count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cpu, _, rows = timed(pack, sizes, ROW_TOKENS, SEED)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    least = -(-int(sizes.sum(dtype=np.int64)) // ROW_TOKENS)
    figures = {"cpu_s": round(cpu, 2), "documents_per_cpu_s": round(count / cpu), "peak_mib": round(peak)}
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        for name in ("write", "map"):
            ask = (Path(folder) / "tokens", sizes, pack, ROW_TOKENS, SEED)
            figures[f"{name}_wall_s"] = round(timed(row_index.rows_of, *ask)[1], 3)
    return figures | {"rows": len(rows), "rows_above_least": f"{len(rows) / least - 1:.3%}"}


def folder_of(sizes: row_index.Sizes, targets: row_index.Sizes, learned: np.ndarray[Any, Any]) -> CacheFolder:
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    contents = order.hashes(0, 0, len(sizes))
    numbers = {"sizes": sizes, "targets": targets, "records": np.arange(len(sizes)), "contents": contents}
    values = {"tokens": np.zeros(int(ends[-1]), np.int32), "targets": learned}
    columns = {"tokens": "int32", "targets": "bool"}
    return CacheFolder(Meta("", columns, documents=len(sizes)), numbers, dict.fromkeys(columns, ends), values)


def repacking(kind: str, count: int) -> dict[str, Any]:
    """Another `data.row_tokens`, for documents of which half are longer: cut, then packed. `kind`: what is learned."""
    sizes = np.exp(np.random.default_rng(0).normal(5.5, 1.0, count)).clip(2, 100_000).astype(np.int32)
    learned = np.ones(int(sizes.sum(dtype=np.int64)), bool)
    first = np.cumsum(sizes, dtype=np.int64) - sizes
    learned[first] = False
    if kind == "answers":
        learned[first + 1] = False
    targets = np.add.reduceat(learned, first, dtype=np.int32)
    documents, figures = folder_of(sizes, targets, learned), {"tokens": len(learned)}
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        for row_tokens in (256, 1024):
            cut = MarkedCut(row_tokens, False)
            seconds, _, found = timed(cut_to_rows, documents, Path(folder) / "tokens", cut)
            _, again, _ = timed(cut_to_rows, documents, Path(folder) / "tokens", cut)
            packed, _, rows = timed(pack, found.sizes, row_tokens, SEED)
            figures[f"to {row_tokens}"] = {
                "documents": len(found.sizes),
                "rows": len(rows),
                "cut_cpu_s": round(seconds, 2),
                "map_wall_s": round(again, 3),
                "pack_cpu_s": round(packed, 2),
            }
    return figures


def duplicates(kind: str, count: int) -> dict[str, Any]:
    """Of documents of which a hundredth are there twice, and of 10,000 held-out ones that are trained on."""
    contents = order.hashes(0, 0, count)
    contents[: count // 100] = contents[-(count // 100) :]
    sizes, columns = np.ones(count, np.int32), {"tokens": "int32"}
    numbers = {"sizes": sizes, "targets": sizes, "records": np.arange(count), "contents": contents}
    all_of = CacheFolder(Meta("", columns, documents=count), numbers, {}, {})
    some = {name: its[:10_000] for name, its in numbers.items()}
    train, held = Corpus(all_of), Corpus(CacheFolder(Meta("", columns, documents=10_000), some, {}, {}))
    figures: dict[str, Any] = {}
    with TemporaryDirectory(dir=Path.cwd()) as folder:
        for name in ("first", "remembered"):
            counted, _, number = timed(count_duplicates, train, Path(folder) / "tokens")
            looked, _, twins = timed(find_twins, held, train, Path(folder) / "tokens")
            figures[name] = {"count_cpu_s": round(counted, 3), "twins_cpu_s": round(looked, 3)}
        dropped, _, kept = timed(cut_to_rows, all_of, Path(folder) / "tokens", None, [])
    return figures | {
        "drop_cpu_s": round(dropped, 2),
        "duplicates": number,
        "kept": len(kept.sizes),
        "twins": twins.number,
    }


def reading(kind: str, count: int) -> dict[str, Any]:
    """A step of 32 rows, by one rank: its census and its documents, in the order of each kind of row."""
    sizes = lengths(kind, count)
    corpus = Corpus(folder_of(sizes, sizes, np.ones(int(sizes.sum(dtype=np.int64)), bool)))
    figures: dict[str, Any] = {}
    ways = {
        "packed": (pack(sizes, ROW_TOKENS, SEED), None, False),
        "one, sorted by step": (one_per_row(count), None, True),
        "one, grouped": (one_per_row(count), 32, False),
    }
    for name, (rows, batch, sorts) in ways.items():
        loader = RowLoader(corpus, Shuffle(corpus, rows, SEED, batch), Slots(32, 4, 0, 1), SEED, None, sorts)

        def step(index: int, loader: RowLoader = loader) -> None:
            loader.census(index)
            for micro in loader.step(index):
                loader.documents(micro)

        spent = [timed(step, at)[0] for at in range(STEPS)]
        figures[name] = {
            "ms": round(1000 * statistics.median(spent), 2),
            "first_ms": round(1000 * spent[0], 2),
            "next_epoch_ms": round(1000 * timed(step, len(rows) // 32 + 2)[0], 2),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", nargs="+", type=float, default=[1e6, 1e7])
    counts = [int(count) for count in parser.parse_args().documents]
    cases: list[tuple[Callable[[str, int], dict[str, Any]], str, int]]
    cases = [(packing, kind, count) for kind in ("lognormal", *FILES) for count in counts]
    cases += [(repacking, kind, 10**6) for kind in ("texts", "answers")]
    cases += [(duplicates, "", count) for count in counts]
    cases += [(reading, "lognormal", count) for count in (10**3, 10**4, 10**5, 10**6)]
    for work, kind, count in cases:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(work, (kind, count))
        print(json.dumps({"what": work.__name__, "lengths": kind, "documents": count} | found), flush=True)


if __name__ == "__main__":
    main()
