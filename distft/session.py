"""Everything one attempt holds on one rank, put together: data, model, engine, and the state it continues from."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from distft import adapters, changes, dist, models, preempt, pulse
from distft.adalora import Allocator, NoAllocator, RankAllocator
from distft.changes import Difference
from distft.checkpoint import state, store
from distft.checkpoint.state import Identity, Progress
from distft.checkpoint.writer import Writer
from distft.clock import Clock
from distft.config import AdaLora, Recipe
from distft.console import Console
from distft.data import encode
from distft.data.encode import Corpus
from distft.data.loader import Loader, Slots
from distft.data.packing import Rows, one_per_row, pack
from distft.data.templates import Template
from distft.dist import Ranks
from distft.engine import deepspeed
from distft.engine.deepspeed import Engine
from distft.errors import UserError
from distft.lease import Fence
from distft.meter import Meter
from distft.rundir import RunDir
from distft.tasks.causal import Causal
from distft.track import Tracker, tracker

LIBRARIES = ("torch", "deepspeed", "transformers", "peft")


@dataclass
class Session:
    """One attempt on one rank."""

    run: RunDir
    attempt: int
    recipe: Recipe
    ranks: Ranks
    console: Console
    track: Tracker
    clock: Clock
    fence: Fence
    task: Causal
    engine: Engine
    allocator: Allocator
    meter: Meter
    loader: Loader
    eval_loader: Loader | None
    eval_steps: int  # passes of all ranks over one micro-batch each
    rows: int  # in an epoch
    total_steps: int
    writer: Writer
    identity: Identity
    progress: Progress
    saved: int  # step of the newest checkpoint, written or being written


@dataclass(frozen=True)
class Dataset:
    corpus: Corpus
    rows: Rows
    digest: str


def prepare(run: RunDir, recipe: Recipe, ranks: Ranks, console: Console) -> Session:
    """From a recipe to a model that can take its next step. Collective.

    Raises:
        UserError: the recipe names something that is not there or does not fit together.
        Preempted: a stop was requested meanwhile.
    """
    pulse.at("the base model")
    base = Path(dist.on_rank_0(ranks, "base", lambda: str(models.locate(recipe.model, recipe.data, run))))
    preempt.check()
    pulse.at("the data")

    @cache
    def template() -> Template:
        return Template.load(models.load_tokenizer(base, recipe.model), recipe.data.template)

    train = dataset(recipe, "train", template, ranks, console)
    held_out = dataset(recipe, "eval", template, ranks, console) if recipe.data.eval else None
    digest = dist.on_rank_0(ranks, "digest", lambda: models.digest(base, run.path / "base.json"))
    tokenizer = dist.on_rank_0(ranks, "tokenizer", lambda: template().digest)
    identity = Identity(digest, train.digest, tokenizer, {name: version(name) for name in LIBRARIES})
    preempt.check()
    pulse.at("the model")
    total_steps, total_rows = length(recipe, len(train.rows))
    engine, task = build(base, recipe, ranks, total_steps)
    allocator = make_allocator(recipe, total_steps, engine)
    trainable, total = adapters.parameter_counts(engine.module)
    if deepspeed.stage(recipe) != recipe.engine.zero_stage:
        console.say("engine.dtype bf16 needs fp32 masters, which ZeRO 0 does not keep: this runs as ZeRO 1")
    console.say(f"model {base}: {trainable:,} of {total:,} parameters are trained")
    pulse.at("the checkpoint to continue from")
    progress = restore(run, engine, allocator, identity, ranks, console)
    if recipe.data.packing and progress.step == 0:  # a checkpoint is of a model that was tried
        check_packing(task, engine, ranks)
    preempt.check()
    slots = Slots(recipe.train.global_batch, recipe.train.micro_batch, ranks.rank, ranks.world)
    fence = Fence(run, os.environ.get("DISTFT_TOKEN"))
    return Session(
        run=run,
        attempt=int(os.environ.get("DISTFT_ATTEMPT", "1")),
        recipe=recipe,
        ranks=ranks,
        console=console,
        track=tracker(recipe, run, ranks.first),
        clock=Clock(preempt.deadline(), state_bytes=engine.state_bytes // ranks.world),
        fence=fence,
        task=task,
        engine=engine,
        allocator=allocator,
        meter=Meter(trainable, total, ranks.world, ranks.device, recipe.engine.dtype),
        loader=Loader(train.corpus, train.rows, slots, recipe.data.seed, total_rows),
        eval_loader=evaluation_loader(held_out, recipe, ranks) if held_out else None,
        eval_steps=math.ceil(len(held_out.rows) / (recipe.train.micro_batch * ranks.world)) if held_out else 0,
        rows=len(train.rows),
        total_steps=total_steps,
        writer=Writer(run.checkpoints, identity, ranks, recipe.checkpoint.keep, fence),
        identity=identity,
        progress=progress,
        saved=progress.step,
    )


def dataset(
    recipe: Recipe, which: Literal["train", "eval"], template: Callable[[], Template], ranks: Ranks, console: Console
) -> Dataset:
    """Tokens from the cache, which rank 0 fills if need be, and the rows they are packed into. Only rank 0 asks for the
    template, and with it for a tokenizer."""

    def build_cache() -> str:
        with console.bar(f"tokens of data.{which}: records", total=None) as bar:

            def show(number: int) -> None:
                pulse.moving()
                bar.at(number, "")

            return str(encode.build(recipe.data, which, template(), preempt.check, show))

    folder = Path(dist.on_rank_0(ranks, f"tokens/{which}", build_cache))
    preempt.check()
    corpus = Corpus.open(folder)
    data = recipe.data
    rows = pack(corpus.lengths, data.row_tokens, data.seed) if data.packing else one_per_row(len(corpus))
    console.say(describe(which, corpus, rows, recipe))
    digest = hashlib.sha256(f"{folder.name} {data.row_tokens} {data.packing} {data.seed}".encode())
    return Dataset(corpus, rows, digest.hexdigest())


def describe(which: str, corpus: Corpus, rows: Rows, recipe: Recipe) -> str:
    meta = corpus.meta
    full = meta.tokens / (len(rows) * recipe.data.row_tokens)
    text = f"data.{which}: {meta.documents:,} documents, {meta.tokens:,} tokens ({meta.targets:,} to predict)"
    text += f" in {len(rows):,} rows, {full:.0%} full"
    if meta.split:
        text += f"; {meta.split:,} longer than a row were split"
    if meta.dropped_long:
        text += f"; {meta.dropped_long:,} longer than a row were dropped"
    if meta.dropped_no_target:
        text += f"; {meta.dropped_no_target:,} without anything to predict were dropped"
    return text


def build(base: Path, recipe: Recipe, ranks: Ranks, total_steps: int) -> tuple[Engine, Causal]:
    """The model with its adapter under the engine, and the task over it."""
    keep_alive = deepspeed.sharded_loading(recipe, ranks)
    model: Any = models.load(base, recipe.model, recipe.engine, adapters.quantized(recipe.adapter))
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and recipe.data.row_tokens > limit:
        raise UserError(f"data.row_tokens {recipe.data.row_tokens} is more than the {limit} positions of the model")
    task = Causal(model.forward, flatten=models.attention(recipe.model, recipe.engine) == "flash_attention_2")
    model = adapters.attach(model, recipe.adapter, str(base), total_steps)
    preempt.check()
    model.train()
    engine = Engine(model, recipe, ranks, adapters.rate_of(recipe.adapter))
    del keep_alive
    return engine, task


def make_allocator(recipe: Recipe, total_steps: int, engine: Engine) -> Allocator:
    if isinstance(recipe.adapter, AdaLora):
        return RankAllocator(recipe.adapter, total_steps, recipe.train.clip, engine)
    return NoAllocator()


def restore(
    run: RunDir,
    engine: Engine,
    allocator: Allocator,
    identity: Identity,
    ranks: Ranks,
    console: Console,
    key: str = "checkpoint",
) -> Progress:
    """Continue from the newest verified checkpoint; from the beginning where there was never one.

    Args:
        key: what it is called among the ranks; another one each time.
    """

    names = dist.on_rank_0(ranks, key, lambda: [folder.name for folder in store.committed(run.checkpoints)])

    def check(folder: Path) -> str | None:
        """All ranks read, each another part, and all know what any has found."""
        found = dist.gather_text(store.flaw(folder, ranks.rank, ranks.world) or "")
        return next(filter(None, found), None)

    folder, passed_over = state.newest(run.checkpoints, [run.checkpoints / name for name in names], check)
    for sentence in passed_over:
        console.say(sentence)
    if folder is None:
        return Progress(step=0, next_row=0, useful_tokens=0, last_eval=0)
    stored = state.Stored(folder)
    changes.agree(
        differences(stored.identity, identity), changes.allowed_here(), f"{folder} was written with something else"
    )
    stored.load_into(engine)
    allocator.load(stored.adapter)
    console.say(f"continuing after step {stored.progress.step} ({folder})")
    return stored.progress


def differences(stored: Identity, now: Identity) -> list[Difference]:
    """Between what a checkpoint was written with and what there is now."""
    found = [Difference(changes.BASE, stored.base[:12], now.base[:12])] if stored.base != now.base else []
    if stored.tokenizer != now.tokenizer:
        found.append(Difference(changes.TOKENIZER, stored.tokenizer[:12], now.tokenizer[:12]))
    elif stored.rows != now.rows:
        found.append(Difference(changes.CONTENT, stored.rows[:12], now.rows[:12]))
    names = sorted(stored.versions.keys() | now.versions.keys())
    versions = [(f"{changes.VERSIONS}.{name}", stored.versions.get(name), now.versions.get(name)) for name in names]
    return found + [Difference(*item) for item in versions if item[1] != item[2]]


def check_packing(task: Causal, engine: Engine, ranks: Ranks) -> None:
    vocabulary = engine.module.get_input_embeddings().num_embeddings  # type: ignore[operator]
    engine.model.eval()
    leaks = task.documents_leak(engine.model, vocabulary, ranks.device)
    engine.model.train()
    if leaks:
        raise UserError("data.packing: this model lets documents in one row see each other; set data.packing=false")


def evaluation_loader(data: Dataset, recipe: Recipe, ranks: Ranks) -> Loader:
    slots = Slots(recipe.train.micro_batch * ranks.world, recipe.train.micro_batch, ranks.rank, ranks.world)
    return Loader(data.corpus, data.rows, slots, seed=0, total=len(data.rows), shuffle=False)


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
            f"train.warmup {recipe.train.warmup} leaves no step for the schedule: {recipe.train.epochs:g} epochs of "
            f"{rows:,} rows are {steps} steps; give warmup 0 to {steps - 1}, or more epochs"
        )
    return steps, total
