"""Puts an attempt together on one rank: data, model, engine, and the state it continues from."""

from __future__ import annotations

import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distft.checkpoint.state import Identity
from distft.checkpoint.writer import Writer
from distft.data import sources
from distft.data.loader import Slots
from distft.data.records import Encoder
from distft.data.sources import Part
from distft.data.templates import Template
from distft.engine import deepspeed
from distft.engine.deepspeed import Engine
from distft.errors import UserError
from distft.model import adapters, base_model
from distft.model.adalora import Allocator, NoAllocator, RankAllocator
from distft.model.context import base_of, encoder_of, make_setting
from distft.process import distributed, pulse, stop_signals
from distft.process.console import Console
from distft.process.deadline import Clock
from distft.process.distributed import Ranks
from distft.recipe.schema import AdaLora, Recipe
from distft.run.digest import of_parts
from distft.run.folder import RunDir
from distft.run.lease import Fence
from distft.run.tracking import tracker
from distft.tasks.causal_lm import Causal
from distft.tasks.multi_task import Asked
from distft.tasks.protocol import Learned, Setting
from distft.tasks.registry import kind_of
from distft.tasks.shared.padding import digest_of
from distft.tasks.shared.position_limits import check_source, positions, source_positions
from distft.training import datasets, reference_pass
from distft.training.datasets import Dataset, HeldOut
from distft.training.session import Session, restore
from distft.training.throughput import Meter

LIBRARIES = ("torch", "deepspeed", "transformers", "peft")


def prepare(run: RunDir, recipe: Recipe, ranks: Ranks, console: Console) -> Session:
    """From a recipe to a model that can take its next step. Collective.

    Raises:
        UserError: the recipe names something that is not there or does not fit together.
        Preempted: a stop was requested meanwhile.
    """
    kind = kind_of(recipe)
    pulse.at("the base model")
    setting = make_setting(run, recipe, kind, lambda key, work: distributed.on_rank_0(ranks, key, work), find=True)
    base = Path(distributed.on_rank_0(ranks, "base", lambda: str(base_of(run, recipe, kind))))
    base_model.check_architecture(base, recipe, kind)  # before all data are encoded
    stop_signals.check()
    pulse.at("the data")
    train, held_out = open_datasets(recipe, kind, setting, ranks, console)
    identity = identify(run, base, setting, kind, train, ranks)
    stop_signals.check()
    pulse.at("the model")
    rows = sum(len(one.rows) for one in train.values())
    total_steps, total_rows = datasets.length(recipe, rows)
    engine, task = build(base, setting, kind, ranks, total_steps)
    corpora = [one.corpus for one in train.values()] + [one.corpus for one in held_out]
    base_model.check_vocabulary(setting.processor(), engine.module, kind, corpora)
    if kind.vocabulary == "seq2seq":
        check_source(source_positions(engine.module), max(int(corpus.sizes.max()) for corpus in corpora))
    allocator = make_allocator(recipe, total_steps, engine)
    trainable, total = adapters.parameter_counts(engine.module)
    if deepspeed.stage(recipe) != recipe.engine.zero_stage:
        console.say("engine.dtype bf16 needs fp32 masters, which ZeRO 0 does not keep: this runs as ZeRO 1")
    console.say(f"model {base}: {trainable:,} of {total:,} parameters are trained")
    pulse.at("the checkpoint to continue from")
    progress = restore(run, engine, allocator, identity, ranks, console)
    if isinstance(task, Causal) and datasets.packs(recipe, kind) and progress.step == 0:  # later it was tried
        check_packing(task, engine, ranks)
    data = next(iter(train.values())), held_out
    reference_pass.record(run, task, engine, data, progress.step, identity.base, ranks, console)
    stop_signals.check()
    slots = Slots(recipe.train.global_batch, recipe.train.micro_batch, ranks.rank, ranks.world)
    fence = Fence(run, os.environ.get("DISTFT_TOKEN"))
    return Session(
        run=run,
        attempt=int(os.environ.get("DISTFT_ATTEMPT", "1")),
        recipe=recipe,
        ranks=ranks,
        console=console,
        track=tracker(recipe, run, ranks.first),
        clock=Clock(stop_signals.deadline(), state_bytes=engine.state_bytes // ranks.world),
        fence=fence,
        task=task,
        engine=engine,
        allocator=allocator,
        meter=Meter(trainable, total, ranks.world, ranks.device, recipe.engine.dtype),
        loader=datasets.training_loader(recipe, kind, train, slots, total_rows),
        held_out=held_out,
        rows=rows,
        total_steps=total_steps,
        writer=Writer(run.checkpoints, identity, ranks, recipe.checkpoint.keep, fence),
        identity=identity,
        progress=progress,
        saved=progress.step,
    )


def open_datasets(
    recipe: Recipe, kind: Asked, setting: Setting, ranks: Ranks, console: Console
) -> tuple[dict[Part, Dataset], list[HeldOut]]:
    @cache
    def encoder(part: Part) -> Encoder:
        return encoder_of(kind, setting, part)

    train: dict[Part, Dataset] = {}
    held_out = []
    for part in sources.parts_of(recipe):
        found = datasets.dataset(recipe, kind, "train", part, encoder, ranks, console)
        assert found is not None
        train[part] = found
        other = datasets.dataset(recipe, kind, "eval", part, encoder, ranks, console)
        held_out += [datasets.held_out(recipe, kind, part, other, ranks)] if other is not None else []
    return train, held_out


def identify(
    run: RunDir, base: Path, setting: Setting, kind: Asked, train: dict[Part, Dataset], ranks: Ranks
) -> Identity:
    digest = distributed.on_rank_0(ranks, "digest", lambda: base_model.digest(base, run.path / "base.json"))
    tokenizer = distributed.on_rank_0(ranks, "tokenizer", lambda: tokenizer_digest(setting, kind))
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
    model: Any = base_model.load(base, recipe, kind, setting.labels, adapters.quantized(recipe.adapter))
    limit = positions(model)
    if limit is not None and recipe.data.row_tokens > limit and kind.vocabulary in ("decoder", "encoder"):
        raise UserError(f"data.row_tokens {recipe.data.row_tokens} is more than the {limit} positions of the model")
    task = kind.task(setting, model)
    rate_of = adapters.rate_of(recipe.train, recipe.adapter, adapters.head_modules(model, kind))
    model = adapters.attach(model, recipe.adapter, kind, str(base), total_steps)
    stop_signals.check()
    model.train()
    engine = Engine(model, recipe, ranks, rate_of)
    del keep_alive
    return engine, task


def make_allocator(recipe: Recipe, total_steps: int, engine: Engine) -> Allocator:
    if isinstance(recipe.adapter, AdaLora):
        return RankAllocator(recipe.adapter, total_steps, recipe.train.clip, engine)
    return NoAllocator()


def check_packing(task: Causal, engine: Engine, ranks: Ranks) -> None:
    embeddings: Any = engine.module.get_input_embeddings()  # type: ignore[operator]
    vocabulary = getattr(embeddings, "base_layer", embeddings).num_embeddings  # of an adapter's own
    engine.model.eval()
    leaks = task.documents_leak(engine.model, vocabulary, ranks.device)
    engine.model.train()
    if leaks:
        raise UserError("data.packing: this model lets documents in one row see each other; set data.packing=false")
