"""The data sets of a run: from the `data` section of a recipe to loaders of micro-batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from distft.data import row_index, token_cache
from distft.data.bad_records import listing
from distft.data.blend import Blend
from distft.data.corpus import CacheFolder, Corpus
from distft.data.crew import Crew
from distft.data.cutting import cut_to_rows
from distft.data.leftovers import SEVERAL
from distft.data.loader import Loader, RowLoader, RowOrder, Shuffle, Slots
from distft.data.mixture import CYCLE, Ingredient, Mixture, shares, weights_of
from distft.data.packing import Rows, bucket, one_per_row, pack
from distft.data.sources import Source, sources_of
from distft.errors import UserError
from distft.model.context import RunContext
from distft.process import distributed, stop_signals
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.recipe.sources import Which
from distft.recipe.tasks import TaskName, TaskPart
from distft.run.digest import of_parts
from distft.tasks.protocol import ModelSpec
from distft.training.filling import Helper, fill_cache, name_of


@dataclass(frozen=True)
class Dataset:
    """Encoded records and how they share rows.

    Attributes:
        digest: of all tokens and their packing.
        folders: of the cache, one per source.
        contents: of what the documents of each source are made from, see `token_cache.content_of`.
        sources: their names; none if the recipe names one place only.
        weights: shares of the sources, each of which has rows of its own then; else their documents share rows.
        rows: of all documents, or of those of each source.
    """

    corpus: Corpus
    rows: Sequence[Rows]
    digest: str
    folders: Sequence[Path] = ()
    contents: Sequence[str] = ()
    sources: Sequence[str] = ()
    weights: Sequence[float] = ()

    @property
    def row_count(self) -> int:
        return sum(map(len, self.rows))

    def order(self, seed: int, batch: int | None = None, fixed: bool = False, apart: bool = False) -> RowOrder:
        """The sequence of rows, see `Shuffle`."""
        firsts = self.corpus.first_documents.tolist() if self.weights else [0]
        orders = [
            Shuffle(self.corpus, rows, seed, batch, fixed, first, apart)
            for rows, first in zip(self.rows, firsts, strict=False)
        ]
        return Blend(orders, self.weights, seed) if self.weights else orders[0]


@dataclass(frozen=True)
class HeldOut:
    """Data to evaluate on. `steps`: passes of all ranks over one micro-batch each."""

    part: TaskName
    data: Dataset
    loader: Loader
    steps: int


def packs(recipe: Recipe, spec: ModelSpec) -> bool:
    return spec.packs if recipe.data.packing is None else recipe.data.packing


def open_dataset(
    context: RunContext, part: TaskPart, which: Which, packed: bool, ranks: Ranks, console: Console
) -> Dataset | None:
    """Documents from the cache, which rank 0 fills if need be, with help of other ranks, and the rows they share, which
    it computes for the others. None where the recipe names no such data."""
    read, spec, recipe = sources_of(part, which), context.model_spec, context.recipe
    if not read:
        return None
    name = name_of(part, which)
    key, first = f"tokens/{name}", list[Dataset]()

    def open_folders(folders: Sequence[Path], contents: Sequence[str]) -> Dataset:
        corpus = Corpus(*opened(context, part, which, folders))
        return arrange(corpus, folders, contents, read, recipe, spec, packed)

    def build_cache() -> tuple[list[str], list[str], int]:
        folders, contents, bad = [], [], 0
        for number, source in enumerate(read):
            with listing(context.run.bad_records, name_of(part, which, source), source) as listed:
                crew = Crew(ranks.store, key, number)
                folders.append(fill_cache(context, part, which, source, console, stop_signals.check, crew=crew))
                listed += token_cache.left_out(folders[-1], source)
                bad += len(listed)
            encoder = context.encoder(part.name, source)
            contents.append(token_cache.content_of(source, encoder, recipe.data.cache, stop_signals.check))
        first.append(open_folders(folders, contents))
        return list(map(str, folders)), contents, bad

    meanwhile = Helper(context, part, which, ranks, Crew(ranks.store, key)).help_out
    paths, contents, bad = distributed.on_rank_0(ranks, key, build_cache, meanwhile=meanwhile)
    stop_signals.check()
    found = first[0] if first else open_folders(list(map(Path, paths)), contents)
    corpus = found.corpus
    console.say(describe_rows(name, found, recipe))
    for line in describe_sources(name, found):
        console.say(line)
    if bad:
        records = corpus.meta.records
        console.say(f"data.{name}: {bad:,} of {records:,} records left out, see {context.run.bad_records}")
    for warning in corpus.meta.warnings.values():
        console.say(f"warning: {warning}")
    return found


def opened(context: RunContext, part: TaskPart, which: Which, folders: Sequence[Path]) -> list[CacheFolder]:
    """The documents of cache folders, cut to rows as the task does it. Raises UserError if one of them has none."""
    data, cut_of = context.recipe.data, context.specs[part.name].cut
    found: list[CacheFolder] = []
    for path in folders:
        before = found if which == "train" and data.duplicates == "drop" else None
        found.append(cut_to_rows(CacheFolder.open(path), path, None if cut_of is None else cut_of(data), before))
        found[-1].meta.check_usable()
    return found


def arrange(
    corpus: Corpus,
    folders: Sequence[Path],
    contents: Sequence[str],
    read: Sequence[Source],
    recipe: Recipe,
    spec: ModelSpec,
    packed: bool,
) -> Dataset:
    """Documents of cache folders, one for each source, in rows. `packed`: several share one."""
    names = [source.title for source in read] if len(read) > 1 else []
    weights = [source.weight for source in read if source.weight is not None]
    found = Dataset(corpus, (), "", folders, contents, names, weights if len(read) > 1 else ())
    return arranged(found, recipe, spec, packed)


def arranged(found: Dataset, recipe: Recipe, spec: ModelSpec, packed: bool) -> Dataset:
    """The same documents in other rows."""
    data, corpus = recipe.data, found.corpus
    together = beside(found.folders)

    def rows_of(folder: Path, sizes: npt.NDArray[np.int32]) -> Rows:
        if not packed:
            return one_per_row(len(sizes))
        return row_index.rows_of(folder, sizes, pack if spec.packs else bucket, data.row_tokens, data.seed)

    if found.weights:
        sizes = np.split(corpus.sizes, corpus.first_documents[1:-1])
        rows = [rows_of(folder, its) for folder, its in zip(found.folders, sizes, strict=True)]
    else:
        rows = [rows_of(together, corpus.sizes)]
    known = f"{'+'.join(found.contents)} {data.row_tokens} {packed} {data.seed}"
    known += (f" {found.weights}" if found.weights else "") + " without duplicates" * (data.duplicates == "drop")
    return replace(found, rows=rows, digest=hashlib.sha256(known.encode()).hexdigest())


def beside(folders: Sequence[Path]) -> Path:
    """What is kept beside these folders, for all of them together, is named after it."""
    if len(folders) == 1:
        return folders[0]
    name = "+".join(folder.name for folder in folders)
    return folders[0].with_name(SEVERAL + hashlib.sha256(name.encode()).hexdigest())  # there is no such folder


def apart(data: Mapping[TaskName, Dataset], recipe: Recipe, spec: ModelSpec) -> dict[TaskName, Dataset]:
    """The same documents, each in a row of its own."""
    return {name: arranged(one, recipe, spec, False) for name, one in data.items()}


def rows_of(data: Mapping[TaskName, Dataset]) -> int:
    return sum(one.row_count for one in data.values())


def digest_of(data: Mapping[TaskName, Dataset]) -> str:
    found = [one.digest for one in data.values()]
    return found[0] if len(found) == 1 else of_parts(*found)


def settled(recipe: Recipe, shares: bool) -> Recipe:
    """The recipe, with an answer where it leaves open whether documents share rows."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"packing": shares})})


def describe_rows(name: str, data: Dataset, recipe: Recipe) -> str:
    meta, rows = data.corpus.meta, data.row_count
    text = f"data.{name}: {meta.documents:,} documents, {meta.size:,} tokens ({meta.targets:,} to predict)"
    text += f" in {rows:,} rows"
    if rows < len(data.corpus):
        text += f", {meta.size / (rows * recipe.data.row_tokens):.0%} full"
    return text + "".join(f"; {number:,} {note}" for note, number in meta.notes.items())


def describe_sources(name: str, data: Dataset) -> Iterator[str]:
    """A line for each of several: what it has, and how much of the training is from it."""
    firsts, sizes = data.corpus.first_documents, data.corpus.sizes
    for number, source in enumerate(data.sources):
        own = sizes[firsts[number] : firsts[number + 1]]
        text = f"data.{name}: {source}: {len(own):,} documents, {int(own.sum(dtype=np.int64)):,} tokens"
        if data.weights:
            share = shares(list(data.weights))[number] / CYCLE
            text += f", {len(data.rows[number]):,} rows; {share:.1%} of the rows of each {CYCLE}"
        yield text


def training_loader(
    recipe: Recipe, spec: ModelSpec, data: Mapping[TaskName, Dataset], slots: Slots, total: int | None
) -> Loader:
    """The stream of micro-batches; of several tasks they come in turn."""
    seed, by = recipe.data.seed, grouping(recipe, spec)
    balanced = balances(recipe, spec)
    batch, sorts = slots.global_batch if by == "stream" else None, by == "step" or balanced
    shuffles = {part: one.order(seed, batch, apart=balanced) for part, one in data.items()}
    if None in data:
        return RowLoader(data[None].corpus, shuffles[None], slots, seed, total, sorts, data[None].sources)
    parts = {part.name: part for part in recipe.parts() if part.name is not None}
    drawn = weights_of({name: data[name].row_count for name in parts}, recipe.parts()[0].temperature)
    weights = {name: part.weight or drawn[name] for name, part in parts.items()}
    mixed = {n: Ingredient(data[n].corpus, shuffles[n], weights[n], data[n].sources) for n in parts}
    return Mixture(mixed, slots, seed, sorts)


def balances(recipe: Recipe, spec: ModelSpec) -> bool:
    """Whether packed rows of a step are sorted by what attention within their documents takes."""
    return recipe.data.balance and spec.packs and packs(recipe, spec)


def grouping(recipe: Recipe, spec: ModelSpec) -> Literal["stream", "step"] | None:
    """Among which rows those of similar lengths stand together: all, those of a step, or none."""
    wanted, packed = recipe.data.group_by_length, spec.packs and packs(recipe, spec)
    if wanted == "step":
        return None if packed else "step"
    if wanted is None:  # of runs that began when it was the default
        wanted = not packed
    return "stream" if wanted else None


def held_out(recipe: Recipe, spec: ModelSpec, part: TaskName, data: Dataset, ranks: Ranks) -> HeldOut:
    """Micro-batches hold the same documents whatever the number of ranks, so that scores do not depend on it."""
    slots = Slots(recipe.train.micro_rows * ranks.world, recipe.train.micro_rows, ranks.rank, ranks.world)
    order = data.order(0, slots.micro_batch if grouping(recipe, spec) else None, fixed=True)
    loader = RowLoader(data.corpus, order, slots, 0, data.row_count)
    return HeldOut(part, data, loader, math.ceil(data.row_count / slots.global_batch))


def length(recipe: Recipe, rows: int) -> tuple[int, int | None]:
    """(optimizer steps, rows to feed in all; None where steps decide).

    Raises:
        UserError: the warm-up takes all steps.
    """
    if recipe.train.steps is not None:
        return recipe.train.steps, None
    assert recipe.train.epochs is not None
    total = max(1, round(recipe.train.epochs * rows))
    steps = math.ceil(total / recipe.train.global_batch)
    if recipe.train.warmup >= steps:
        raise UserError(
            f"train.warmup {recipe.train.warmup} leaves no steps for the schedule: {recipe.train.epochs:g} epochs of "
            f"{rows:,} rows are {steps} steps; give warmup 0 to {steps - 1}, or more epochs"
        )
    return steps, total
