"""Streaming measured: random stops and resumes over shards of all formats, seconds of a resume, quality of the shuffle.

    python -m benchmarks.streaming runs/streaming [--trials 1000] [--only positions resume shuffle tokenizer]

An encoder that makes a token of each word takes the place of a tokenizer: what is measured is the stream, not that.
Only `tokenizer` resumes with a real one, on the chats of `benchmarks.encoding`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
from scipy.stats import spearmanr

from benchmarks.encoding import chats, make_tokenizer, sentences
from distft.data.block_order import BlockOrder
from distft.data.block_order import begin as blocks_before
from distft.data.lanes import Cursor, Stock
from distft.data.loader import Slots
from distft.data.packing import one_per_row, pack
from distft.data.record_index import RecordIndex, index_of
from distft.data.records import Document, Encoded, Encoder, Record
from distft.data.sources import Source
from distft.data.stream import Cursors, StreamLoader
from distft.data.stream_documents import Encoded as Documents
from distft.data.templates import Template
from distft.recipe.schema import Data
from distft.tasks.causal_lm import CausalEncoder

SHARDS, LANES, SEED, ROW = 37, 16, 0, 2048
STEPS = 100  # behind a million documents, before a stop
FORMATS = ("jsonl", "jsonl.gz", "jsonl.zst", "parquet")


class Words:
    """A token for each word. `encoded`: records so far."""

    digest = "words"

    def __init__(self) -> None:
        self.columns, self.encoded = {"tokens": "int32"}, 0

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        self.encoded += 1
        tokens = np.zeros(record.fields["words"], np.int32)
        return Encoded([Document({"tokens": tokens}, len(tokens), len(tokens))])


def write_shards(folder: Path, documents: int) -> list[Source]:
    """Records of different sizes in shards of different lengths, which differ from run to run of this in nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(SEED)
    ends = np.sort(chance.choice(np.arange(1, documents), SHARDS - 1, replace=False)).tolist()
    words = chance.lognormal(5.0, 0.9, documents).clip(1, ROW).astype(int).tolist()
    sources = []
    for shard, (begin, end) in enumerate(zip([0, *ends], [*ends, documents], strict=True)):
        path = folder / f"{shard:02d}.{FORMATS[shard % len(FORMATS)]}"
        records = [{"id": number, "words": words[number], "text": "w " * 20} for number in range(begin, end)]
        if not path.exists():
            _write(path, records)
        sources.append(Source(str(path)))
    return sources


def _write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path, row_group_size=1000)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text, 1))
    elif path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(text)
    else:
        path.write_bytes(text)


def ranks(
    index: RecordIndex, world: int, micro: int = 1, packed: bool = True, encoder: Encoder | None = None
) -> list[StreamLoader]:
    arrange = partial(pack, row_tokens=ROW, seed=SEED) if packed else lambda sizes: one_per_row(len(sizes))
    stock = Stock(Documents(index, Source("shards"), encoder or Words()), BlockOrder(SEED, len(index), LANES), arrange)
    return [StreamLoader([stock], lambda row: 0, Slots(LANES, micro, rank, world), SEED) for rank in range(world)]


def fed(loaders: Sequence[StreamLoader], step: int) -> list[list[int]]:
    """The rows of a step over all ranks, by lane."""
    micros = sorted((micro for one in loaders for micro in one.step(step)), key=lambda micro: micro.index)
    return [row for micro in micros for row in micro.samples]


def cursors(loaders: Sequence[StreamLoader], step: int) -> Cursors:
    """As they are in a checkpoint."""
    found = {lane: own for one in loaders for lane, own in one.place(step).cursors().items()}
    stored = json.loads(json.dumps([[asdict(one) for one in found[lane]] for lane in range(LANES)]))
    return [[Cursor(**one) for one in own] for own in stored]


def flat(rows: Sequence[Sequence[int]]) -> list[int]:
    return list(chain.from_iterable(rows))


def positions(folder: Path, documents: int, steps: int, trials: int) -> None:
    """Stop, resume, stop, resume at random places with random numbers of ranks: ids that differ from a run without."""
    index = index_of(write_shards(folder / f"shards-{documents}", documents), str(folder / "cache"))
    undisturbed, rows, places = ranks(index, 1), [], []
    for step in range(steps):
        places.append(cursors(undisturbed, step))
        rows.append(fed(undisturbed, step))
    chance, ids, different, begun = random.Random(SEED), 0, 0, time.monotonic()
    for _ in range(trials):
        step = chance.randrange(steps - 8)
        at = places[step]
        for _ in range(2):  # a resume, a few steps, a stop whose cursors the next resume takes
            world = chance.choice((1, 2, 4))
            loaders = ranks(index, world, chance.choice([micro for micro in (1, 2, 4) if micro * world <= LANES]))
            for one in loaders:
                one.seek(step, at)
            for _ in range(chance.randrange(1, 4)):
                found, step = fed(loaders, step), step + 1
                ids += sum(map(len, found))
                different += sum(a != b for a, b in zip(flat(found), flat(rows[step - 1]), strict=True))
            at = cursors(loaders, step)
    said = {
        "trials": trials,
        "shards": SHARDS,
        "documents": index.records,
        "epochs": undisturbed[0].place(steps).read / len(index),
    }
    report("positions", {**said, "ids compared": ids, "differ": different, "seconds": time.monotonic() - begun})


def resume(folder: Path) -> None:
    """Seconds from cursors to the first rows, behind so many documents."""
    index = index_of(write_shards(folder / "shards-200000", 200_000), str(folder / "cache"))
    loaders, done, step, seen = ranks(index, 1), 0, 0, {}
    for target in (10**3, 10**4, 10**5, 10**6):
        while done < target:
            done, step = done + sum(map(len, fed(loaders, step))), step + 1
        seen[target] = (step, cursors(loaders, step))
    for target, (at, places) in seen.items():
        for world in (1, 4):
            encoder = Words()
            seconds = resumed(folder, index, world, encoder, at, places)
            report("resume", {"documents": target, "ranks": world, "records encoded": encoder.encoded, **seconds})


def resumed(
    folder: Path, index: RecordIndex, world: int, encoder: Encoder, step: int, places: Cursors
) -> dict[str, float]:
    """Seconds of rank 0."""
    begun = time.monotonic()
    again = index_of([file_source(file) for file in index.files], str(folder / "cache"))
    one = ranks(again, world, encoder=encoder)[0]
    one.seek(step, places)
    opened = time.monotonic()
    list(one.step(step))
    return {"index": opened - begun, "first rows": time.monotonic() - opened}


def tokenizer(folder: Path) -> None:
    """`resume` behind a million documents, with a tokenizer and a template. The lanes begin with the windows that are
    there, and go on for some steps, so that cursors have what those of a checkpoint have."""
    from transformers import AutoTokenizer

    known = sentences()
    path = folder / "chats.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_tokenizer(folder, known)
        path.write_text("".join(chats(known, 100 << 20)))
    index = index_of([Source(str(path))], str(folder / "cache"))
    window = next(k for k in count() if LANES * blocks_before(k) * 64 >= 10**6)
    template = Template.load(AutoTokenizer.from_pretrained(folder / "chatml"), Data(train="x"))
    encoder = Counted(CausalEncoder(template, {}, ROW, False))
    [whole] = ranks(index, 1, encoder=encoder)
    whole.seek(0, [[Cursor(window=window)]] * LANES)
    for step in range(STEPS):
        list(whole.step(step))
    places, documents = cursors([whole], STEPS), round(whole.place(STEPS).read * 64)
    for world in (1, 4):
        encoder.encoded = 0
        seconds = resumed(folder, index, world, encoder, STEPS, places)
        report("tokenizer", {"documents": documents, "ranks": world, "records encoded": encoder.encoded, **seconds})


class Counted:
    """An encoder. `encoded`: records so far."""

    def __init__(self, encoder: CausalEncoder) -> None:
        self._encoder, self.columns, self.digest, self.encoded = encoder, encoder.columns, encoder.digest, 0

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        self.encoded += 1
        return self._encoder.encode(record, answered)


def file_source(file: Any) -> Source:
    return Source(str(file.form.path))


def shuffle(folder: Path) -> None:
    """One epoch in batches, beside a buffer of `datasets`, and beside a permutation of everything."""
    documents = 200_000
    index = index_of(write_shards(folder / f"shards-{documents}", documents), str(folder / "cache"))
    loader = ranks(index, 1, packed=False)
    ours: list[int] = []
    step = 0
    while loader[0].place(step).read < len(index):
        ours += flat(fed(loader, step))
        step += 1
    shards = np.searchsorted(
        np.cumsum([file.records.sum() for file in index.files]), np.arange(documents), side="right"
    )
    for name, order in (
        ("stream", np.array(ours)),
        ("datasets, buffer 1000", np.fromiter(buffered(shards, 1000), np.int64)),
        ("datasets, buffer 10000", np.fromiter(buffered(shards, 10_000), np.int64)),
        ("permutation", np.random.default_rng(SEED).permutation(documents)),
    ):
        report("shuffle", {"order": name, **quality(order, shards)})


def buffered(shards: npt.NDArray[np.int64], size: int) -> Iterator[int]:
    """What `shuffle(seed, buffer_size)` of an IterableDataset gives: shards in any order, a buffer over records."""
    from datasets import IterableDataset

    parts = [np.flatnonzero(shards == shard) for shard in range(SHARDS)]

    def records(parts: list[npt.NDArray[np.int64]]) -> Iterator[dict[str, int]]:
        for part in parts:
            for number in part.tolist():
                yield {"id": number}

    data = IterableDataset.from_generator(records, gen_kwargs={"parts": parts}).shuffle(seed=SEED, buffer_size=size)
    return (row["id"] for row in data)


def quality(order: npt.NDArray[np.int64], shards: npt.NDArray[np.int64]) -> dict[str, float]:
    """Of ids in the order of training, in batches of `LANES`."""
    batches = order[: len(order) // LANES * LANES].reshape(-1, LANES)
    own = shards[batches]
    pairs = np.triu_indices(LANES, 1)
    near = np.abs(batches[:, pairs[0]] - batches[:, pairs[1]])
    after = np.abs(batches[:-1, :, None] - batches[1:, None, :])
    return {
        "largest share of a shard in a batch": float(np.mean([np.bincount(row).max() / LANES for row in own])),
        "pairs of a batch within 64 records": float((near < 64).mean()),
        "pairs of a batch within 1000 records": float((near < 1000).mean()),
        "pairs of neighbouring batches within 64 records": float((after < 64).mean()),
        "rank correlation of place and source": float(spearmanr(np.arange(len(order)), order).statistic),
    }


def report(what: str, figures: dict[str, Any]) -> None:
    shown = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"what": what, **shown}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--only", nargs="*", default=["positions", "resume", "shuffle", "tokenizer"])
    args = parser.parse_args()
    if "positions" in args.only:
        positions(args.folder, args.documents, args.steps, args.trials)
    if "resume" in args.only:
        resume(args.folder)
    if "shuffle" in args.only:
        shuffle(args.folder)
    if "tokenizer" in args.only:
        tokenizer(args.folder)


if __name__ == "__main__":
    main()
