"""The stream: the same rows whoever reads it and wherever it is stopped."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import pytest

from distft.data import block_order, stream_documents
from distft.data.block_order import BlockOrder
from distft.data.corpus import Corpus
from distft.data.lanes import PART, Cursor, Stock
from distft.data.loader import Slots
from distft.data.packing import one_per_row, pack
from distft.data.record_index import RecordIndex, index_of
from distft.data.records import Document, Encoded, Record
from distft.data.sources import Source
from distft.data.stream import Cursors, StreamLoader
from distft.data.token_cache import build_cache
from distft.errors import UserError

LANES, SEED = 8, 3


@dataclass
class Letters:
    """An encoder: a token for each letter. A text of words makes a document of each; an empty one makes none."""

    digest: str = "letters"
    columns: dict[str, str] = field(default_factory=lambda: {"tokens": "int32"})
    encoded: int = 0

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        self.encoded += 1
        if record.fields["text"] == "bad":
            raise UserError(f"{record.where} is bad")
        words = str(record.fields["text"]).split()
        documents = [Document({"tokens": np.array([ord(c) for c in word], np.uint8)}, len(word), 1) for word in words]
        return Encoded(documents, {"were split": 1} if len(words) > 1 else {})


@dataclass(frozen=True)
class Numbers:
    """Documents without files: one a record, of these sizes."""

    sizes: npt.NDArray[np.int32]
    name: str = "numbers"

    def __len__(self) -> int:
        return -(-len(self.sizes) // 64)

    def count(self, block: int) -> int:
        return min(64, len(self.sizes) - 64 * block)

    def of(self, block: int, first: int = 0) -> Iterator[Sequence[Document]]:
        for record in range(64 * block + first, 64 * block + self.count(block)):
            yield [Document({}, int(self.sizes[record]), record=record)]


def stock(documents: Any, seed: int = SEED, lanes: int = LANES, row_tokens: int | None = 40, **checks: Any) -> Stock:
    arrange = partial(pack, row_tokens=row_tokens, seed=seed) if row_tokens else lambda sizes: one_per_row(len(sizes))
    return Stock(documents, BlockOrder(seed, len(documents), lanes), arrange, **checks)


def in_turn(sources: int) -> Any:
    return lambda row: row % 3 % sources


def loader(stocks: Sequence[Stock], rank: int = 0, world: int = 1, micro: int = 1, lanes: int = LANES) -> StreamLoader:
    return StreamLoader(stocks, in_turn(len(stocks)), Slots(lanes, micro, rank, world), SEED)


def fed(loaders: Sequence[StreamLoader], step: int) -> list[list[int]]:
    """The rows of one step over all ranks, in the order of the micro-batches' indices."""
    micros = sorted((micro for one in loaders for micro in one.step(step)), key=lambda micro: micro.index)
    assert [place for micro in micros for place in micro.places] == list(range(step * LANES, step * LANES + LANES))
    return [row for micro in micros for row in micro.samples]


def cursors(loaders: Sequence[StreamLoader], step: int) -> Cursors:
    """As a checkpoint has them."""
    found = {lane: own for one in loaders for lane, own in one.place(step).cursors().items()}
    stored = json.loads(json.dumps([[asdict(one) for one in found[lane]] for lane in range(LANES)]))
    return [[Cursor(**one) for one in own] for own in stored]


@pytest.fixture
def index(tmp_path: Path) -> RecordIndex:
    """Shards of all forms that streaming reads, of different lengths, with records of no and of several documents."""
    chance = random.Random(0)
    sources, number = [], 0
    for shard, suffix in enumerate(["jsonl", "jsonl.gz", "parquet", "txt", "jsonl.zst", "parquet"]):
        texts = []
        for _ in range(chance.randrange(50, 400)):
            texts.append(" ".join("x" * chance.randrange(1, 30) for _ in range(chance.choice([1, 1, 1, 2, 3]))))
            number += 1
            if suffix != "txt" and chance.random() < 0.05:
                texts[-1] = ""
        path = tmp_path / f"{shard}.{suffix}"
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        if suffix == "parquet":
            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=70)
        elif suffix == "jsonl.zst":
            with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
                file.write(rows)
        elif suffix == "jsonl.gz":
            path.write_bytes(gzip.compress(rows))
        else:
            path.write_bytes("\n".join(texts).encode() if suffix == "txt" else rows)
        sources.append(Source(str(path)))
    return index_of(sources, str(tmp_path / "cache"))


def encoded(index: RecordIndex, **source: Any) -> stream_documents.Encoded:
    return stream_documents.Encoded(index, Source("shards", **source), Letters())


def test_ranks_and_micro_batches_do_not_matter(index: RecordIndex) -> None:
    stocks = [stock(encoded(index)), stock(Numbers(np.full(500, 11, np.int32)))]
    plain = [loader(stocks)]
    layouts = [
        [loader(stocks, rank, world, micro) for rank in range(world)]
        for world, micro in ((2, 1), (4, 2), (2, 4), (1, 8))
    ]
    for step in range(60):
        rows = fed(plain, step)
        assert all(fed(layout, step) == rows for layout in layouts)
        assert all(cursors(layout, step + 1) == cursors(plain, step + 1) for layout in layouts)


def test_any_stop_and_resume_gives_the_same_rows(index: RecordIndex) -> None:
    stocks = [stock(encoded(index))]
    undisturbed = [loader(stocks)]
    rows, places = [], [cursors(undisturbed, 0)]
    for step in range(30):
        rows.append(fed(undisturbed, step))
        places.append(cursors(undisturbed, step + 1))
    chance = random.Random(1)
    for _ in range(200):
        step, world, micro = chance.randrange(30), chance.choice([1, 2, 4]), chance.choice([1, 2])
        ranks = [loader(stocks, rank, world, micro) for rank in range(world)]
        for one in ranks:
            one.seek(step, places[step])
        for again in range(step, min(step + chance.choice([1, 1, 2]), 30)):
            assert fed(ranks, again) == rows[again], f"step {again} after a resume at {step}"
            assert cursors(ranks, again + 1) == places[again + 1]


def test_a_resume_encodes_what_it_gives(index: RecordIndex) -> None:
    """And without the sizes that a cursor brings along all of the begun windows, for the same rows."""
    undisturbed = [loader([stock(encoded(index))])]
    for step in range(75):
        fed(undisturbed, step)
    at, rows = cursors(undisturbed, 75), [fed(undisturbed, step) for step in range(75, 80)]
    counts = []
    for places in (at, [[replace(one, sizes="", ahead="") for one in own] for own in at]):
        documents = encoded(index)
        again = [loader([stock(documents)])]
        again[0].seek(75, places)
        assert [fed(again, step) for step in range(75, 80)] == rows
        counts.append(documents.encoder.encoded)  # type: ignore[attr-defined]
    assert counts[0] < LANES * 5 * 12
    assert counts[1] > LANES * 100


def test_an_epoch_feeds_every_document_once(index: RecordIndex) -> None:
    """Of a whole number of epochs: windows of all lanes up to a round are places in the stream of blocks."""
    documents = encoded(index)
    found, samples = loader([stock(documents)]), Counter[int]()
    lanes = found._lanes
    for step in itertools.count():
        before = {lane: ones[0].mark().window.number for lane, ones in lanes.items()}
        for lane, [row] in zip(range(LANES), (micro.samples for micro in found.step(step)), strict=True):
            samples.update(row if before[lane] < 4 else ())
        if min(before.values()) >= 4:
            break
    every = [part << PART | n for n, record in enumerate(everything(index)) for part in range(len(record.split()))]
    blocks = LANES * block_order.begin(4)
    assert blocks > 2 * len(index)
    assert samples.keys() == set(every)
    assert set(samples.values()) <= {blocks // len(index), blocks // len(index) + 1}


def everything(index: RecordIndex) -> list[str]:
    return [row.fields["text"] for block in range(len(index)) for row in index.read(block)]  # type: ignore[union-attr]


def test_documents_are_those_of_the_samples(index: RecordIndex) -> None:
    texts, found = everything(index), loader([stock(encoded(index))], micro=2)
    draws = []
    for step in range(5):
        for micro in found.step(step):
            for samples, row in zip(micro.samples, found.documents(micro), strict=True):
                for sample, document in zip(samples, row, strict=True):
                    part, record = divmod(sample, 1 << PART)
                    assert "".join(map(chr, document["tokens"])) == texts[record].split()[part]
                    assert document["tokens"].dtype == np.int32
                    assert document.record == record
                    draws.append(document.draw)
                assert sum(document.size for document in row) <= 40
    assert len(set(draws)) == len(draws)


def test_a_prepared_cache_gives_the_same_stream(tmp_path: Path) -> None:
    texts = [["a", "", "bad", "bb cc", "dd"][n % 5] + "x" * (n % 17) * (n % 5 != 1) for n in range(1000)]
    texts = ["bad" if text.startswith("bad") else text for text in texts]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = Source(str(tmp_path / "a.jsonl"), bad_budget=1.0)
    index = index_of([source], str(tmp_path))
    folder = build_cache(source, Letters(), str(tmp_path), lambda: None, lambda records: None)
    eager = stream_documents.Encoded(index, source, Letters())
    kinds = [stream_documents.Prepared(index, source, Corpus.open(folder)), eager]
    loaders = [loader([stock(kind)]) for kind in kinds]
    for step in range(100):
        [one, other] = (list(each.step(step)) for each in loaders)
        assert [micro.samples for micro in one] == [micro.samples for micro in other]
        for left, right in zip(one, other, strict=True):
            for a, b in zip(loaders[0].documents(left)[0], loaders[1].documents(right)[0], strict=True):
                assert a["tokens"].tobytes() == b["tokens"].tobytes()
                assert (a.size, a.targets, a.record, a.draw) == (b.size, b.targets, b.record, b.draw)
    assert {bad.record for bad in eager.left_out()} == {n for n, text in enumerate(texts) if text == "bad"}
    assert eager.left_out() == []
    assert eager.notes["were split"] > 0


def test_sources_of_equal_rights_are_one(index: RecordIndex) -> None:
    """Their blocks follow each other, and records are numbered through."""
    parts = [RecordIndex(index.files[:2]), RecordIndex(index.files[2:])]
    bases = 0, parts[0].records
    own = [stream_documents.Encoded(*one) for one in zip(parts, [Source("a")] * 2, [Letters()] * 2, bases, strict=True)]
    joined = stream_documents.Joined(own)
    one, two = [loader([stock(encoded(index))])], [loader([stock(joined)])]
    for step in range(20):
        assert fed(one, step) == fed(two, step)


def test_bad_records_are_refused_in_the_step_that_meets_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' * 300 + '{"text": "bad"}\n')
    documents = stream_documents.Encoded(
        index_of([Source(str(tmp_path / "a.jsonl"))], str(tmp_path)), Source("a"), Letters()
    )
    found = loader([stock(documents)])
    with pytest.raises(UserError, match=r"a\.jsonl:301 is bad"):
        deque(map(list, map(found.step, range(100))))


def test_the_first_step_encodes_little_and_each_step_its_share() -> None:
    documents = Numbers(np.random.default_rng(0).integers(1, 40, 100_000).astype(np.int32))
    counts = []

    def count(made: Sequence[Document]) -> None:
        counts[-1] += 1

    found = loader([stock(documents, check=count)])
    for step in range(700):
        counts.append(0)
        list(found.step(step))
    assert counts[0] < LANES * 70
    assert max(counts[1:]) <= LANES * 5  # those of a row, or twice as many while windows grow
    assert max(counts[600:]) <= LANES * 3


def test_rows_are_full() -> None:
    """Lognormal lengths, as those of conversations are."""
    lengths = np.random.default_rng(0).lognormal(5.5, 0.9, 200_000).clip(1, 2048).astype(np.int32)
    found, full = loader([stock(Numbers(lengths), row_tokens=2048)]), []
    for step in range(700):
        for micro in found.step(step):
            full.append(sum(int(lengths[sample]) for sample in micro.samples[0]) / 2048)
    assert np.mean(full[len(full) // 3 :]) > 0.98
    assert np.mean(full[: LANES * 20]) > 0.9


def test_steps_can_go_back_a_little(index: RecordIndex) -> None:
    found = [loader([stock(encoded(index))])]
    rows = [fed(found, step) for step in range(6)]
    for step in (4, 5, 3, 4, 5):
        assert fed(found, step) == rows[step]
    with pytest.raises(RuntimeError, match="step 0 of the stream is neither"):
        fed(found, 0)


def test_blocks_that_were_read_are_counted(index: RecordIndex) -> None:
    stocks = [stock(encoded(index))]
    one, two = [loader(stocks)], [loader(stocks, rank, 2) for rank in range(2)]
    last = 0.0
    for step in range(60):
        fed(one, step), fed(two, step)
        now = one[0].place(step + 1).read
        assert now == pytest.approx(sum(each.place(step + 1).read for each in two))
        assert now > last
        last = now
    again = loader(stocks)
    again.seek(59, cursors(one, 59))
    list(again.step(59))
    assert again.place(60).read == last


def test_data_of_which_nothing_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n' * 300)
    found = loader([stock(encoded(index_of([Source(str(tmp_path / "a.jsonl"))], str(tmp_path))))])
    with pytest.raises(UserError, match=r"^none of the records of shards can be used for training$"):
        list(found.step(0))
