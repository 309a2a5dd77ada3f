"""Training data that are encoded while training runs (`data.streaming`)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distft.data import bad_records, record_index, token_cache
from distft.data.bad_records import Bad
from distft.data.block_order import BlockOrder
from distft.data.corpus import Corpus
from distft.data.lanes import Cursor, Documents, Stock
from distft.data.loader import Slots
from distft.data.mixture import Cycle
from distft.data.order import hashes
from distft.data.packing import bucket, one_per_row, pack
from distft.data.records import Cuts, Document
from distft.data.sources import Source, files_of, sources_of
from distft.data.stream import StreamLoader
from distft.data.stream_documents import Encoded, Joined, Prepared
from distft.model.context import RunContext
from distft.process import distributed, stop_signals
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.tasks.protocol import ModelSpec
from distft.training.datasets import opened
from distft.training.filling import name_of

Check = Callable[[Sequence[Document]], None]


@dataclass(frozen=True)
class Part:
    """One source. `key`: of all that its documents are made from."""

    name: str
    source: Source
    documents: Encoded | Prepared
    key: str


@dataclass(frozen=True)
class Streamed:
    """Sources whose records are encoded when they are wanted."""

    parts: Sequence[Part]

    @property
    def _weights(self) -> list[float]:
        """None: all records of all sources are one."""
        return [part.source.weight for part in self.parts if part.source.weight is not None and len(self.parts) > 1]

    @property
    def sources(self) -> list[str]:
        """Their names, if there are several."""
        return [part.source.title for part in self.parts] if len(self.parts) > 1 else []

    @property
    def blocks(self) -> int:
        return sum(len(part.documents) for part in self.parts)

    def digest(self, recipe: Recipe, packed: bool) -> str:
        """Of all that decides the rows. The same whether the token cache has the documents or not."""
        data, keys = recipe.data, "+".join(part.key for part in self.parts)
        known = f"stream {keys} {data.row_tokens} {packed} {data.seed} {self._weights}"
        return hashlib.sha256(known.encode()).hexdigest()

    def loader(self, recipe: Recipe, spec: ModelSpec, slots: Slots, check: Check) -> StreamLoader:
        """Of a recipe in which `data.packing` is settled. `check`: see `Stock`."""
        data, way = recipe.data, pack if spec.packs else bucket
        packed = partial(way, row_tokens=data.row_tokens, seed=data.seed)
        arrange = packed if data.packing else lambda sizes: one_per_row(len(sizes))

        def stock(documents: Documents, seed: int) -> Stock:
            return Stock(documents, BlockOrder(seed, len(documents), slots.global_batch), arrange, check)

        every = [part.documents for part in self.parts]
        if not self._weights:
            return StreamLoader([stock(Joined(every), data.seed)], lambda row: 0, slots, data.seed)
        stocks = [stock(one, hashed(data.seed, number)) for number, one in enumerate(every)]
        cycle = Cycle(self._weights, data.seed)
        return StreamLoader(stocks, lambda row: cycle.place(row)[0], slots, data.seed)


def hashed(seed: int, number: int) -> int:
    """The seed of one of several sources."""
    return int(hashes(seed, number, 1)[0])


def open_stream(context: RunContext, ranks: Ranks, console: Console) -> Streamed | None:
    """The training data, if the recipe streams them: rank 0 makes their index, if need be. Collective.

    Raises:
        UserError: they cannot be read, or not record by record.
        Preempted: a stop was requested meanwhile.
    """
    if not context.recipe.data.streaming:
        return None
    [part] = context.recipe.parts()
    own = context.settled(context.recipe)  # its tokenizer is the feed's own
    parts: list[Part] = []
    for source in sources_of(part, "train"):
        base = sum(before.documents.index.records for before in parts)
        parts.append(open_source(own, name_of(part, "train", source), source, (base, len(parts)), ranks, console))
    return Streamed(parts)


def open_source(
    context: RunContext, name: str, source: Source, place: tuple[int, int], ranks: Ranks, console: Console
) -> Part:
    """One of the sources, see `open_stream`. `place`: records, and sources, before it."""
    cache, bad_list = context.recipe.data.cache, context.run.bad_records
    files, encoder = files_of(source), context.encoder(None, source)
    [part] = context.recipe.parts()

    def prepare() -> list[Any]:
        with console.bar(f"data.{name}: records indexed", total=None) as bar:
            record_index.index_of(files, cache, stop_signals.check, lambda number: bar.at(number, ""))
        key = token_cache.content_of(source, encoder, cache, stop_signals.check)
        whole = encoder.uncut if isinstance(encoder, Cuts) else encoder
        with bad_records.listing(bad_list, name, source) as bad:
            folder = token_cache.encoded(source, whole, cache, stop_signals.check)
            bad += token_cache.left_out(folder, source) if folder else bad_records.noted(bad_list, name)
        return [key, None if folder is None else str(folder), len(bad)]

    key, folder, bad = distributed.on_rank_0(ranks, f"index/{name}", prepare)
    stop_signals.check()
    index = record_index.index_of(files, cache)
    how = "are encoded while training runs" if folder is None else "are in the token cache"
    console.say(f"data.{name}: {index.records:,} records, which {how}")
    if bad:
        console.say(f"data.{name}: {bad:,} of them left out{' so far' if folder is None else ''}, see {bad_list}")
    if folder is None:
        return Part(name, source, Encoded(index, source, encoder, *place, console.say), key)
    corpus = Corpus(*opened(context, part, "train", [Path(folder)]))
    return Part(name, source, Prepared(index, source, corpus, *place), key)


@dataclass
class Stream:
    """The stream of a session.

    Attributes:
        rows: the digest of its rows.
        epochs: how many times all ranks have read the data, as of the last step.
    """

    data: Streamed
    loader: StreamLoader
    rows: str
    epochs: float = 0.0

    def go_on(self, step: int, where: Mapping[str, Any] | None) -> None:
        """From a step. `where`: what `where` has said of it; None: the run has not streamed before."""
        if where is None:
            self.loader.seek(step, None)
            return
        cursors = [[Cursor(**one) for one in own] for own in where["lanes"]]
        if where["rows"] != self.rows:  # other documents, by --allow
            cursors = [[replace(one, sizes="", ahead="") for one in own] for own in cursors]
        self.loader.seek(step, cursors if len(cursors[0]) == self.loader.sources else None)

    def figures(self, number: int) -> dict[str, float]:
        """This rank's part of the epochs up to the end of a step, counted from 1, and of what the step took of each of
        several sources."""
        found = {"epochs": self.loader.place(number).read / self.data.blocks}
        of, sizes = self.loader.given(number - 1)
        for which, name in enumerate(self.data.sources):
            found[f"source.{name}.documents"] = float((of == which).sum())
            found[f"source.{name}.tokens"] = float(sizes[of == which].sum())
        return found

    def where(self, step: int, run: RunDir, ranks: Ranks, console: Console) -> dict[str, Any]:
        """Where the lanes of all ranks are before a step. What any of them has left out is listed. Collective.

        Raises:
            UserError: too much was left out.
        """
        own = {lane: [asdict(one) for one in own] for lane, own in self.loader.place(step).cursors().items()}
        left_out = [[asdict(bad) for bad in part.documents.left_out()] for part in self.data.parts]
        every = [json.loads(text) for text in distributed.gather_text(json.dumps([list(own.items()), left_out]))]
        for number, part in enumerate(self.data.parts):
            if ranks.first and (bad := [Bad(**one) for _, more in every for one in more[number]]):
                note(part, bad, run, console)
        lanes = {lane: cursors for some, _ in every for lane, cursors in some}
        return {"rows": self.rows, "lanes": [lanes[lane] for lane in sorted(lanes)]}

    def tell_notes(self, console: Console) -> None:
        """Say what was done to the records that all ranks have encoded in this attempt. Collective."""
        gathered = distributed.gather_text(json.dumps([dict(part.documents.notes) for part in self.data.parts]))
        for part, notes in zip(self.data.parts, zip(*map(json.loads, gathered), strict=True), strict=True):
            every = sum(map(Counter, notes), Counter[str]())
            if every:
                told = "; ".join(f"{number:,} {note}" for note, number in sorted(every.items()))
                console.say(f"data.{part.name}: of the records encoded in this attempt {told}")


def note(part: Part, bad: Sequence[Bad], run: RunDir, console: Console) -> None:
    """List bad records beside those that are listed already."""
    name, path, records = part.name, run.bad_records, part.documents.index.records
    listed = {one.record: one for one in bad_records.noted(path, name)}
    every = listed | {one.record: one for one in bad}
    with bad_records.listing(path, name, part.source) as noted:
        noted += [every[record] for record in sorted(every)]
        bad_records.check(part.source, noted, records)
    if len(every) > len(listed):
        console.say(f"data.{name}: {len(every):,} of {records:,} records left out so far, see {path}")
