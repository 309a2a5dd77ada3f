"""The data sets of a run: from the `data` section of a recipe to loaders of micro-batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distft.data import duplicates, row_index, token_cache
from distft.data.bad_records import listing
from distft.data.corpus import Corpus
from distft.data.cutting import cut_to_rows
from distft.data.loader import Loader, RowLoader, Shuffle, Slots
from distft.data.mixture import Ingredient, Mixture, weights_of
from distft.data.packing import Rows, bucket, one_per_row, pack
from distft.data.records import Cuts
from distft.data.sources import Which, source_of
from distft.errors import UserError
from distft.model.context import RunContext
from distft.process import distributed, pulse, stop_signals
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.recipe.tasks import TaskName, TaskPart
from distft.run.digest import of_parts
from distft.tasks.protocol import ModelSpec


@dataclass(frozen=True)
class Dataset:
    """Encoded records and how they share rows. `folder`: of the cache; `digest`: of all tokens and their packing;
    `content`: of what they are made from."""

    corpus: Corpus
    rows: Rows
    digest: str
    folder: Path = Path()
    content: str = ""


@dataclass(frozen=True)
class HeldOut:
    """Data to evaluate on. `steps`: passes of all ranks over one micro-batch each."""

    part: TaskName
    corpus: Corpus
    loader: Loader
    steps: int


def packs(recipe: Recipe, spec: ModelSpec) -> bool:
    return spec.packs if recipe.data.packing is None else recipe.data.packing


def open_dataset(
    context: RunContext, part: TaskPart, which: Which, packed: bool, ranks: Ranks, console: Console
) -> Dataset | None:
    """Documents from the cache, which rank 0 fills if need be, and the rows they share, which it computes for the
    others. Only rank 0 asks for the encoder, and with it for a tokenizer. None where the recipe names no such data."""
    source, spec, recipe = source_of(part, which), context.model_spec, context.recipe
    if source is None:
        return None
    name = name_of(part, which)
    first: list[Dataset] = []

    def build_cache() -> tuple[str, str, int]:
        with listing(context.run.bad_records, name, source) as bad:
            folder = fill_cache(context, part, which, console, stop_signals.check)
            bad += token_cache.left_out(folder, source)
        encoder = context.encoder(part.name)
        content = token_cache.content_of(source, encoder, recipe.data.cache, stop_signals.check)
        first.append(arrange(opened(context, part, which, folder), folder, content, recipe, spec, packed))
        return str(folder), content, len(bad)

    path, content, bad = distributed.on_rank_0(ranks, f"tokens/{name}", build_cache)
    stop_signals.check()
    folder = Path(path)
    found = first[0] if first else arrange(opened(context, part, which, folder), folder, content, recipe, spec, packed)
    corpus = found.corpus
    console.say(describe_rows(name, corpus, found.rows, recipe))
    if bad:
        records = corpus.meta.records
        console.say(f"data.{name}: {bad:,} of {records:,} records left out, see {context.run.bad_records}")
    for warning in corpus.meta.warnings.values():
        console.say(f"warning: {warning}")
    return found


def name_of(part: TaskPart, which: Which) -> str:
    """For people: "train", or "train of NAME" where there are several tasks."""
    return f"{which} of {part.name}" if part.name else which


def fill_cache(
    context: RunContext,
    part: TaskPart,
    which: Which,
    console: Console,
    check_stop: Callable[[], None],
    workers: int | None = None,
    verify: bool = False,
) -> Path:
    """The cache folder of these data, written first unless it is there already. See `token_cache.build_cache`."""
    source, cache = source_of(part, which), context.recipe.data.cache
    assert source is not None
    with console.bar(f"data.{name_of(part, which)}: records", total=None) as bar:

        def show(number: int) -> None:
            pulse.moving()
            bar.at(number, "")

        encoder = context.encoder(part.name)
        whole = encoder.uncut if isinstance(encoder, Cuts) else encoder
        return token_cache.build_cache(source, whole, cache, check_stop, show, bar.expect, workers, console.say, verify)


def opened(context: RunContext, part: TaskPart, which: Which, folder: Path) -> Corpus:
    """The documents of a cache folder, cut to rows as the task does it. Raises UserError if there are none."""
    data, cut_of = context.recipe.data, context.specs[part.name].cut
    before: list[Corpus] | None = [] if which == "train" and data.duplicates == "drop" else None
    corpus = cut_to_rows(Corpus.open(folder), folder, None if cut_of is None else cut_of(data), before)
    corpus.meta.check_usable()
    return corpus


def arrange(corpus: Corpus, folder: Path, content: str, recipe: Recipe, spec: ModelSpec, packed: bool) -> Dataset:
    """Documents of a cache folder in rows. `content`: what they are made from; `packed`: several share one."""
    data = recipe.data
    if packed:
        way = pack if spec.packs else bucket
        rows = row_index.rows_of(folder, corpus.sizes, way, data.row_tokens, data.seed)
    else:
        rows = one_per_row(len(corpus))
    known = f"{content} {data.row_tokens} {packed} {data.seed}{' without duplicates' * (data.duplicates == 'drop')}"
    digest = hashlib.sha256(known.encode())
    return Dataset(corpus, rows, digest.hexdigest(), folder, content)


def apart(data: Mapping[TaskName, Dataset], recipe: Recipe, spec: ModelSpec) -> dict[TaskName, Dataset]:
    """The same documents, each in a row of its own."""
    return {name: arrange(one.corpus, one.folder, one.content, recipe, spec, False) for name, one in data.items()}


def tell_duplicates(
    recipe: Recipe, train: Mapping[TaskName, Dataset], held: Mapping[TaskName, Dataset], console: Console
) -> None:
    """Says which documents the training data have more than once, and which the held-out data have too."""
    for part in recipe.parts():
        one, other = train[part.name], held.get(part.name)
        said = [duplicates.tell_duplicates(name_of(part, "train"), one.corpus, one.folder)]
        if other is not None:
            said.append(duplicates.tell_twins(name_of(part, "eval"), other.corpus, one.corpus, one.folder))
        for text in said:
            if text is not None:
                console.say(text)


def rows_of(data: Mapping[TaskName, Dataset]) -> int:
    return sum(len(one.rows) for one in data.values())


def digest_of(data: Mapping[TaskName, Dataset]) -> str:
    found = [one.digest for one in data.values()]
    return found[0] if len(found) == 1 else of_parts(*found)


def settled(recipe: Recipe, shares: bool) -> Recipe:
    """The recipe, with an answer where it leaves open whether documents share rows."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"packing": shares})})


def describe_rows(name: str, corpus: Corpus, rows: Rows, recipe: Recipe) -> str:
    meta = corpus.meta
    text = f"data.{name}: {meta.documents:,} documents, {meta.size:,} tokens ({meta.targets:,} to predict)"
    text += f" in {len(rows):,} rows"
    if len(rows) < len(corpus):
        text += f", {meta.size / (len(rows) * recipe.data.row_tokens):.0%} full"
    return text + "".join(f"; {number:,} {note}" for note, number in meta.notes.items())


def training_loader(
    recipe: Recipe, spec: ModelSpec, data: Mapping[TaskName, Dataset], slots: Slots, total: int | None
) -> Loader:
    """The stream of micro-batches; of several tasks they come in turn."""
    seed, by = recipe.data.seed, grouping(recipe, spec)
    batch, sorts = slots.global_batch if by == "stream" else None, by == "step"
    shuffles = {part: Shuffle(one.corpus, one.rows, seed, batch) for part, one in data.items()}
    if None in data:
        return RowLoader(data[None].corpus, shuffles[None], slots, seed, total, sorts)
    parts = {part.name: part for part in recipe.parts() if part.name is not None}
    drawn = weights_of({name: len(data[name].rows) for name in parts}, recipe.parts()[0].temperature)
    weights = {name: part.weight or drawn[name] for name, part in parts.items()}
    return Mixture({n: Ingredient(data[n].corpus, shuffles[n], weights[n]) for n in parts}, slots, seed, sorts)


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
    shuffle = Shuffle(data.corpus, data.rows, 0, slots.micro_batch if grouping(recipe, spec) else None, fixed=True)
    loader = RowLoader(data.corpus, shuffle, slots, 0, len(data.rows))
    return HeldOut(part, data.corpus, loader, math.ceil(len(data.rows) / slots.global_batch))


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
