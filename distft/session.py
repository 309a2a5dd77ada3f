"""Everything one attempt holds on one rank, put together: data, model, engine, and the state it continues from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distft import adapters, changes, dist, feed, labels, models, newmodel, preempt, preferences, pulse
from distft.adalora import Allocator, NoAllocator, RankAllocator
from distft.changes import Difference
from distft.checkpoint import state, store
from distft.checkpoint.state import Identity, Progress
from distft.checkpoint.writer import Writer
from distft.clock import Clock
from distft.config import AdaLora, ModelInit, Recipe
from distft.console import Console
from distft.data.loader import Loader, Slots
from distft.data.templates import Template
from distft.data.types import Encoder
from distft.digest import of_parts
from distft.dist import Ranks
from distft.engine import deepspeed
from distft.engine.deepspeed import Engine
from distft.errors import UserError
from distft.feed import Dataset, HeldOut, Part
from distft.lease import Fence
from distft.meter import Meter
from distft.rundir import RunDir
from distft.tasks.causal import Causal
from distft.tasks.kinds import kind_of
from distft.tasks.multi import Asked, MultiKind, of_part
from distft.tasks.padded import digest_of
from distft.tasks.positions import check_source, positions, source_positions
from distft.tasks.task import Kind, Learned, Setting
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
    task: Learned[Any]
    engine: Engine
    allocator: Allocator
    meter: Meter
    loader: Loader
    held_out: Sequence[HeldOut]
    rows: int  # in an epoch
    total_steps: int
    writer: Writer
    identity: Identity
    progress: Progress
    saved: int  # step of the newest checkpoint, written or being written

    def is_to_stop(self) -> bool:
        """Whether this rank was told to, or the job's time is over; the next sum over ranks makes it known to all."""
        return preempt.requested() or self.clock.out_of_time()


def prepare(run: RunDir, recipe: Recipe, ranks: Ranks, console: Console) -> Session:
    """From a recipe to a model that can take its next step. Collective.

    Raises:
        UserError: the recipe names something that is not there or does not fit together.
        Preempted: a stop was requested meanwhile.
    """
    kind = kind_of(recipe)
    pulse.at("the base model")
    setting = make_setting(run, recipe, kind, lambda key, work: dist.on_rank_0(ranks, key, work), find=True)
    base = Path(dist.on_rank_0(ranks, "base", lambda: str(base_of(run, recipe, kind))))
    models.check_architecture(base, recipe, kind)  # before all data are encoded
    preempt.check()
    pulse.at("the data")
    train, held_out = datasets(recipe, kind, setting, ranks, console)
    identity = identify(run, base, setting, kind, train, ranks)
    preempt.check()
    pulse.at("the model")
    rows = sum(len(one.rows) for one in train.values())
    total_steps, total_rows = feed.length(recipe, rows)
    engine, task = build(base, setting, kind, ranks, total_steps)
    corpora = [one.corpus for one in train.values()] + [one.corpus for one in held_out]
    models.check_vocabulary(setting.processor(), engine.module, kind, corpora)
    if kind.vocabulary == "seq2seq":
        check_source(source_positions(engine.module), max(int(corpus.sizes.max()) for corpus in corpora))
    allocator = make_allocator(recipe, total_steps, engine)
    trainable, total = adapters.parameter_counts(engine.module)
    if deepspeed.stage(recipe) != recipe.engine.zero_stage:
        console.say("engine.dtype bf16 needs fp32 masters, which ZeRO 0 does not keep: this runs as ZeRO 1")
    console.say(f"model {base}: {trainable:,} of {total:,} parameters are trained")
    pulse.at("the checkpoint to continue from")
    progress = restore(run, engine, allocator, identity, ranks, console)
    if isinstance(task, Causal) and feed.packs(recipe, kind) and progress.step == 0:  # later it was tried
        check_packing(task, engine, ranks)
    data = next(iter(train.values())), held_out
    preferences.record(run, task, engine, data, progress.step, identity.base, ranks, console)
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
        loader=feed.training_loader(recipe, kind, train, slots, total_rows),
        held_out=held_out,
        rows=rows,
        total_steps=total_steps,
        writer=Writer(run.checkpoints, identity, ranks, recipe.checkpoint.keep, fence),
        identity=identity,
        progress=progress,
        saved=progress.step,
    )


def make_setting(
    run: RunDir, recipe: Recipe, kind: Asked, once: Callable[[str, Callable[[], Any]], Any], find: bool = False
) -> Setting:
    """What the task of a run is made from.

    Args:
        once: has one rank do a thing of a name, and gives all its result.
        find: labels that no checkpoint knows yet are found again; for the attempt that holds the run.
    """

    def settle() -> dict[str, list[str]]:
        kept = labels.read(run.labels)
        source = partial(feed.training_source, recipe)
        found = labels.of_run(run.labels, recipe, source, begun=not find or run.newest_commit() > 0)
        if kept is not None and kept != found:
            shutil.rmtree(run.base, ignore_errors=True)  # made for other labels
        return found

    found = once("labels", settle)

    @cache
    def processor() -> Any:
        return models.load_processor(base_of(run, recipe, kind), recipe.model, kind)

    return Setting(recipe, found, processor)


def base_of(run: RunDir, recipe: Recipe, kind: Asked) -> Path:
    """The local folder of a run's base model."""

    def data() -> list[tuple[Kind, Any]]:
        if isinstance(kind, MultiKind):
            return [(part, feed.training_source(recipe, name)) for name, part in kind.parts.items()]
        return [(kind, feed.training_source(recipe))]

    def make(init: ModelInit, folder: Path) -> None:
        newmodel.create(init, kind, labels.read(run.labels) or {}, data(), folder)

    return models.locate(recipe.model, run, make)


def encoder_of(kind: Asked, setting: Setting, part: Part) -> Encoder:
    if isinstance(kind, MultiKind):
        assert part is not None  # which of the tasks is settled before
        return kind.parts[part].encoder(of_part(setting, part))
    return kind.encoder(setting)


def datasets(
    recipe: Recipe, kind: Asked, setting: Setting, ranks: Ranks, console: Console
) -> tuple[dict[Part, Dataset], list[HeldOut]]:
    @cache
    def encoder(part: Part) -> Encoder:
        return encoder_of(kind, setting, part)

    train: dict[Part, Dataset] = {}
    held_out = []
    for part in feed.parts_of(recipe):
        found = feed.dataset(recipe, kind, "train", part, encoder, ranks, console)
        assert found is not None
        train[part] = found
        other = feed.dataset(recipe, kind, "eval", part, encoder, ranks, console)
        held_out += [feed.held_out(recipe, kind, part, other, ranks)] if other is not None else []
    return train, held_out


def identify(
    run: RunDir, base: Path, setting: Setting, kind: Asked, train: dict[Part, Dataset], ranks: Ranks
) -> Identity:
    digest = dist.on_rank_0(ranks, "digest", lambda: models.digest(base, run.path / "base.json"))
    tokenizer = dist.on_rank_0(ranks, "tokenizer", lambda: tokenizer_digest(setting, kind))
    rows = [one.digest for one in train.values()]
    versions = {name: version(name) for name in LIBRARIES}
    return Identity(digest, rows[0] if len(rows) == 1 else of_parts(*rows), tokenizer, versions)


def tokenizer_digest(setting: Setting, kind: Asked) -> str:
    """sha256 over the tokenizer, and the chat template where there is one."""
    processor = setting.processor()
    if kind.vocabulary == "decoder":
        return Template.load(processor, setting.recipe.data.template).digest
    tokenizer = getattr(processor, "tokenizer", processor)
    return digest_of(tokenizer) if tokenizer.is_fast else of_parts(sorted(tokenizer.get_vocab().items()))


def build(base: Path, setting: Setting, kind: Asked, ranks: Ranks, total_steps: int) -> tuple[Engine, Learned[Any]]:
    """The model with its adapter under the engine, and the task over it."""
    recipe = setting.recipe
    # transformers 5.23 cannot load wav2vec2 and Whisper straight into shards: each rank loads such models whole
    heard = kind.vocabulary in ("characters", "speech")
    keep_alive = None if heard else deepspeed.sharded_loading(recipe, ranks)
    model: Any = models.load(base, recipe, kind, setting.labels, adapters.quantized(recipe.adapter))
    limit = positions(model)
    if limit is not None and recipe.data.row_tokens > limit and kind.vocabulary in ("decoder", "encoder"):
        raise UserError(f"data.row_tokens {recipe.data.row_tokens} is more than the {limit} positions of the model")
    task = kind.task(setting, model)
    rate_of = adapters.rate_of(recipe.train, recipe.adapter, adapters.head_modules(model, kind))
    model = adapters.attach(model, recipe.adapter, kind, str(base), total_steps)
    preempt.check()
    model.train()
    engine = Engine(model, recipe, ranks, rate_of)
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
    embeddings: Any = engine.module.get_input_embeddings()  # type: ignore[operator]
    vocabulary = getattr(embeddings, "base_layer", embeddings).num_embeddings  # of an adapter's own
    engine.model.eval()
    leaks = task.documents_leak(engine.model, vocabulary, ranks.device)
    engine.model.train()
    if leaks:
        raise UserError("data.packing: this model lets documents in one row see each other; set data.packing=false")
