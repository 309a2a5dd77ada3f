"""Training data that are encoded while training runs (`data.streaming`)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from distft.data import bad_records, record_index, stream_documents, token_cache
from distft.data.bad_records import Bad
from distft.data.block_order import BlockOrder
from distft.data.corpus import Corpus
from distft.data.lanes import Cursor, Stock
from distft.data.loader import Slots
from distft.data.packing import bucket, one_per_row, pack
from distft.data.records import Document
from distft.data.sources import Source, source_of
from distft.data.stream import StreamLoader
from distft.model.context import RunContext
from distft.process import distributed, stop_signals
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir
from distft.tasks.protocol import ModelSpec
from distft.training.datasets import name_of

Check = Callable[[Sequence[Document]], None]


@dataclass(frozen=True)
class Streamed:
    """A source whose records are encoded when they are wanted. `key`: of the token cache, for all its documents."""

    name: str
    source: Source
    documents: stream_documents.Encoded | stream_documents.Prepared
    key: str

    @property
    def records(self) -> int:
        return self.documents.index.records

    def digest(self, recipe: Recipe, packed: bool) -> str:
        """Of all that decides the rows. The same whether the token cache has the documents or not."""
        data = recipe.data
        return hashlib.sha256(f"stream {self.key} {data.row_tokens} {packed} {data.seed}".encode()).hexdigest()

    def loader(self, recipe: Recipe, spec: ModelSpec, slots: Slots, check: Check) -> StreamLoader:
        """Of a recipe in which `data.packing` is settled. `check`: see `Stock`."""
        data, way = recipe.data, pack if spec.packs else bucket
        packed = partial(way, row_tokens=data.row_tokens, seed=data.seed)
        order = BlockOrder(data.seed, len(self.documents), slots.global_batch)
        stock = Stock(self.documents, order, packed if data.packing else lambda sizes: one_per_row(len(sizes)), check)
        return StreamLoader([stock], lambda row: 0, slots, data.seed)


def open_stream(context: RunContext, ranks: Ranks, console: Console) -> Streamed | None:
    """The training data, if the recipe streams them: rank 0 makes their index, if need be. Collective.

    Raises:
        UserError: they cannot be read, or not record by record.
        Preempted: a stop was requested meanwhile.
    """
    recipe = context.recipe
    if not recipe.data.streaming:
        return None
    [part] = recipe.parts()
    source, name = source_of(part, "train"), name_of(part, "train")
    assert source is not None
    encoder = context.settled(recipe).encoder(part.name)  # its tokenizer is the feed's own
    root = token_cache.root_of(recipe.data.cache)

    def prepare() -> list[Any]:
        with console.bar(f"data.{name}: records indexed", total=None) as bar:
            record_index.index_of([source], recipe.data.cache, stop_signals.check, lambda number: bar.at(number, ""))
        key = token_cache.key_of(source, encoder, root)
        with bad_records.listing(context.run.bad_records, name, source) as bad:
            folder = token_cache.encoded(key, source, root)
            bad += token_cache.left_out(folder, source) if folder else bad_records.noted(context.run.bad_records, name)
        return [key, folder is not None, len(bad)]

    key, prepared, bad = distributed.on_rank_0(ranks, f"index/{name}", prepare)
    stop_signals.check()
    index = record_index.index_of([source], recipe.data.cache)
    documents: stream_documents.Encoded | stream_documents.Prepared
    if prepared:
        documents = stream_documents.Prepared(index, source, Corpus.open(root / key))
    else:
        documents = stream_documents.Encoded(index, source, encoder, console.say)
    how = "are in the token cache" if prepared else "are encoded while training runs"
    console.say(f"data.{name}: {index.records:,} records, which {how}")
    if bad:
        console.say(
            f"data.{name}: {bad:,} of them left out{'' if prepared else ' so far'}, see {context.run.bad_records}"
        )
    return Streamed(name, source, documents, key)


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
        self.loader.seek(step, cursors)

    def read(self, step: int) -> float:
        """This rank's part of the epochs before a step."""
        return self.loader.place(step).read / len(self.data.documents)

    def where(self, step: int, run: RunDir, ranks: Ranks, console: Console) -> dict[str, Any]:
        """Where the lanes of all ranks are before a step. What any of them has left out is listed. Collective.

        Raises:
            UserError: too much was left out.
        """
        own = {lane: [asdict(one) for one in own] for lane, own in self.loader.place(step).cursors().items()}
        mine = [list(own.items()), [asdict(bad) for bad in self.data.documents.left_out()]]
        every = [json.loads(text) for text in distributed.gather_text(json.dumps(mine))]
        if ranks.first and (bad := [Bad(**one) for _, more in every for one in more]):
            note(self.data, bad, run, console)
        lanes = {lane: cursors for some, _ in every for lane, cursors in some}
        return {"rows": self.rows, "lanes": [lanes[lane] for lane in sorted(lanes)]}

    def tell_notes(self, console: Console) -> None:
        """Say what was done to the records that all ranks have encoded in this attempt. Collective."""
        every = Counter[str]()
        for text in distributed.gather_text(json.dumps(self.data.documents.notes)):
            every.update(json.loads(text))
        if every:
            told = "; ".join(f"{number:,} {note}" for note, number in sorted(every.items()))
            console.say(f"data.{self.data.name}: of the records encoded in this attempt {told}")


def note(streamed: Streamed, bad: Sequence[Bad], run: RunDir, console: Console) -> None:
    """List bad records beside those that are listed already."""
    name, path = streamed.name, run.bad_records
    listed = {one.record: one for one in bad_records.noted(path, name)}
    every = listed | {one.record: one for one in bad}
    with bad_records.listing(path, name, streamed.source) as noted:
        noted += [every[record] for record in sorted(every)]
        bad_records.check(streamed.source, noted, streamed.records)
    if len(every) > len(listed):
        console.say(f"data.{name}: {len(every):,} of {streamed.records:,} records left out so far, see {path}")
