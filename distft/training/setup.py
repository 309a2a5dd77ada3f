"""Puts an attempt together on one rank: data, model, engine, and the state it continues from."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from distft.checkpoint import state
from distft.checkpoint.ahead import Verification
from distft.checkpoint.state import Identity
from distft.checkpoint.writer import Writer
from distft.data import row_counts, templates
from distft.data.corpus import Corpus
from distft.data.loader import Slots
from distft.engine import configuration
from distft.engine.deepspeed import Engine
from distft.engine.shards import Shards
from distft.errors import UserError
from distft.model import adapters, attention, base_digest, base_model
from distft.model.adalora import Allocator, NoAllocator, RankAllocator
from distft.model.context import RunContext
from distft.model.reached import Reached
from distft.model.skeleton import Places
from distft.model.vocabulary import Limits
from distft.process import distributed, environment, pulse, stop_signals
from distft.process.console import Console
from distft.process.deadline import Clock
from distft.process.distributed import Ranks
from distft.recipe.adapters import AdaLora
from distft.recipe.schema import Recipe
from distft.recipe.tasks import TaskName
from distft.run import tracking
from distft.run.folder import RunDir
from distft.run.lease import Fence
from distft.tasks.multi_task import models_of, task_of
from distft.tasks.protocol import Learned
from distft.tasks.shared.chunked_head import is_told
from distft.tasks.shared.position_limits import check_source, positions
from distft.training import (
    attention_trial,
    datasets,
    head_chunks,
    hub_commits,
    planned,
    profile,
    reference_pass,
    repetition,
    row_sharing,
    streaming,
)
from distft.training import settled as settled_by
from distft.training.datasets import Dataset
from distft.training.feed import Feed
from distft.training.flops import work_of
from distft.training.memory import MemoryMeter
from distft.training.session import Session, restore, verification
from distft.training.streaming import Stream, Streamed
from distft.training.throughput import Meter, peak_of

LIBRARIES = ("torch", "deepspeed", "transformers", "peft")


def prepare(run: RunDir, recipe: Recipe, ranks: Ranks, console: Console) -> Session:
    """From a recipe to a model that can take its next step. Collective.

    Raises:
        UserError: the recipe names something that is not there or does not fit together.
        Preempted: a stop was requested meanwhile.
    """
    tracking.check(recipe)
    verified = verification(run, ranks)  # the disk works meanwhile
    named, recipe = recipe, hub_commits.settle(run, recipe, ranks, console)
    context = RunContext(run, recipe, partial(distributed.on_rank_0, ranks), starts=True)
    pulse.at("the base model")
    spec = context.model_spec
    base_model.check_architecture(context.base, recipe, spec)  # before all data are encoded
    attention.check(context.base, recipe, context.specs)
    asked, recipe = recipe, planned.settle(run, recipe, context.base, ranks, console)
    context = context.settled(recipe)
    attempt = int(os.environ.get(environment.ATTEMPT, "1"))
    planned.write_down(recipe, context.base, run.attempt_logs(attempt), ranks, console)
    stop_signals.check()
    tell_labels(context, console)
    pulse.at("the data")
    shares, untried = row_sharing.begin(run, recipe, spec, ranks)
    streamed = streaming.open_stream(context, ranks, console)
    train, held = open_datasets(context, shares, ranks, console)
    identity = identify(context, rows_digest(streamed, train, recipe, shares), ranks)
    stop_signals.check()
    pulse.at("the model")
    total_steps = datasets.length(recipe, datasets.rows_of(train))[0]
    engine, task = build_engine(context, ranks, total_steps, restored_here(context, verified, ranks), console)
    corpora = [one.corpus for one in (*train.values(), *held.values())]
    limits = Limits.of(context.processor, engine.module, spec.family)
    check_corpora(limits, corpora)
    attention_trial.settle(context, task, engine, ranks, console)
    identity = replace(identity, settled=settled_by.found(run, asked, recipe, ranks))
    if untried and not row_sharing.settle(run, recipe, task, engine, ranks, console):
        shares = False
        train, held = datasets.apart(train, recipe, spec), datasets.apart(held, recipe, spec)
        identity = replace(identity, rows=rows_digest(streamed, train, recipe, shares))
    rows = datasets.rows_of(train)
    total_steps, total_rows = datasets.length(recipe, rows)
    if ranks.first and streamed is None:
        row_counts.note(named, rows)
    settled = datasets.settled(recipe, shares)
    held_out = [datasets.held_out(settled, spec, part, one, ranks) for part, one in held.items()]
    allocator = make_allocator(recipe, total_steps, engine)
    trainable, total = adapters.parameter_counts(engine.module)
    console.say(f"model {context.base}: {trainable:,} of {total:,} parameters are trained")
    pulse.at("the checkpoint to continue from")
    progress = restore(run, engine, allocator, identity, verified, console)
    head_chunks.settle(recipe, task, engine, ranks, console)  # only now does every weight have its value
    tell_zero_stage(recipe, engine, ranks, console)
    micro_rows = recipe.train.micro_rows
    reference_pass.record_reference(
        run, task, engine, corpora, micro_rows, progress.step, identity.base, ranks, console
    )
    stop_signals.check()
    slots = Slots(recipe.train.global_batch, recipe.train.micro_rows, ranks.rank, ranks.world)
    stream = None
    if streamed is not None:
        stream = Stream(streamed, streamed.loader(settled, spec, slots, limits.check), identity.rows)
        stream.go_on(progress.step, progress.stream)
    loader = stream.loader if stream is not None else datasets.training_loader(settled, spec, train, slots, total_rows)
    sources = train[None].sources if None in train else ()  # of one task
    fence = Fence(run, os.environ.get(environment.TOKEN))
    meter, memory = make_meter(context, engine, task, ranks, console), MemoryMeter(ranks.device)
    clock = Clock(stop_signals.deadline(), state_bytes=engine.state_bytes // ranks.world)
    return Session(
        run=run,
        attempt=attempt,
        context=context,
        ranks=ranks,
        console=console,
        track=tracking.trackers(recipe, run, ranks.first),
        clock=clock,
        fence=fence,
        task=task,
        engine=engine,
        allocator=allocator,
        meter=meter,
        memory=memory,
        profile=profile.asked_for(profile.Subject(run, attempt, ranks, console, engine.model, meter, memory)),
        loader=loader,
        feed=Feed(task, loader, ranks.device, total_steps, streamed.sources if streamed is not None else sources),
        held_out=held_out,
        rows=rows,
        total_rows=total_rows if None in train else None,  # of several tasks each goes on with its next epoch
        total_steps=total_steps,
        writer=Writer(run.checkpoints, identity, ranks, recipe.checkpoint, fence, clock.leaves_less_than),
        identity=identity,
        progress=progress,
        saved=progress.step,
        reached=Reached(engine.module, recipe.adapter) if progress.step == 0 else None,
        stream=stream,
    )


def open_datasets(
    context: RunContext, shares: bool, ranks: Ranks, console: Console
) -> tuple[dict[TaskName, Dataset], dict[TaskName, Dataset]]:
    """(data to train on, unless they are streamed, held-out data) by task. `shares`: documents share rows."""
    train, held = {}, {}
    for part in context.recipe.parts():
        if not context.recipe.data.streaming:
            found = datasets.open_dataset(context, part, "train", shares, ranks, console)
            assert found is not None
            train[part.name] = found
        other = datasets.open_dataset(context, part, "eval", shares, ranks, console)
        if other is not None:
            held[part.name] = other
    if ranks.first and train:
        for part in context.recipe.parts():
            one, other = train[part.name], held.get(part.name)
            for text in repetition.told(part, one.corpus, None if other is None else other.corpus, one.folders):
                console.say(text)
    return train, held


def rows_digest(streamed: Streamed | None, train: dict[TaskName, Dataset], recipe: Recipe, shares: bool) -> str:
    return datasets.digest_of(train) if streamed is None else streamed.digest(recipe, shares)


def identify(context: RunContext, rows: str, ranks: Ranks) -> Identity:
    """`rows`: digest of the training rows."""
    recipe, family = context.recipe, context.model_spec.family
    digest = base_digest.digest(context.base, ranks)
    tokenizer = distributed.on_rank_0(ranks, "tokenizer", lambda: family.digest(context.processor, recipe))
    versions = {name: version(name) for name in LIBRARIES}
    if family.chats:
        versions["reading of conversations"] = str(templates.FORMAT)
    return Identity(digest, rows, tokenizer, versions)


def restored_here(context: RunContext, verified: Verification, ranks: Ranks) -> frozenset[str]:
    """Names of the weights that are not read from the base model's files, since a checkpoint of this run has them."""

    def look() -> list[str]:
        if attention_trial.is_ahead(context.run, context.recipe):
            return []
        return sorted(state.restored_by(verified.folders))

    return frozenset(distributed.on_rank_0(ranks, "weights of checkpoints", look))


def build_engine(
    context: RunContext, ranks: Ranks, total_steps: int, restored: frozenset[str], console: Console
) -> tuple[Engine, Learned[Any]]:
    """The model with its adapter under the engine, and the task over it.

    Args:
        restored: names of weights that `restore` will set.
    """
    recipe, spec = context.recipe, context.model_spec
    # transformers 5.23 cannot load wav2vec2 and Whisper straight into shards: each rank loads such models whole
    shards = None if spec.family.hears else Shards.of(recipe, ranks)
    model: Any = context.load_model(adapters.quantized(recipe.adapter), Places(shards, restored))
    limit = positions(model) if spec.family.limit == "positions" else None
    if limit is not None and recipe.data.row_tokens > limit:
        raise UserError(f"data.row_tokens {recipe.data.row_tokens} is more than the {limit} positions of the model")
    if (note := attention.cost(model, recipe)) is not None:
        console.say(note)
    task = context.task(model)
    rate_of = adapters.rate_of(recipe.train, recipe.adapter, adapters.head_modules(model, spec))
    with shards.announced() if shards is not None else nullcontext():
        model = adapters.attach(model, recipe.adapter, spec, str(context.base), total_steps)
        stop_signals.check()
        model.train()
        return Engine(model, recipe, ranks, rate_of), task


def tell_labels(context: RunContext, console: Console) -> None:
    for name, spec in context.specs.items():
        told = spec.labels.describe(context.setting(name).labels) if spec.labels is not None else None
        if told is not None:
            console.say(f"{name}: {told}" if name else told)


def tell_zero_stage(recipe: Recipe, engine: Engine, ranks: Ranks, console: Console) -> None:
    stage = configuration.stage(recipe, ranks.world)
    if stage < recipe.engine.zero_stage:
        console.say(f"a single rank shares its states with nobody: this runs as ZeRO {stage}")
    elif stage != recipe.engine.zero_stage:
        what = f"engine.dtype bf16 with gradients in {recipe.engine.grad_dtype}"
        console.say(f"{what} needs another ZeRO stage than {recipe.engine.zero_stage}: this runs as ZeRO {stage}")
    if stage == 3:
        sharded, total = engine.sharded_weights()
        console.say(f"ZeRO 3: {sharded} of {total} weights are sharded, the smallest stay whole on each rank")


def check_corpora(limits: Limits, corpora: Sequence[Corpus]) -> None:
    """Raises UserError if the data have tokens, or sources so long, that the model does not take."""
    known = limits.vocabulary.known is not None
    limits.vocabulary.check(max((corpus.largest_token() for corpus in corpora), default=0) if known else 0)
    check_source(limits.longest, max((int(corpus.sizes.max()) for corpus in corpora), default=0))


def make_allocator(recipe: Recipe, total_steps: int, engine: Engine) -> Allocator:
    if isinstance(recipe.adapter, AdaLora):
        return RankAllocator(recipe.adapter, total_steps, recipe.train.clip, engine)
    return NoAllocator()


def make_meter(context: RunContext, engine: Engine, learned: Learned[Any], ranks: Ranks, console: Console) -> Meter:
    """Says why there is no MFU on a GPU. Collective."""
    dtype = context.recipe.engine.dtype
    [peak] = distributed.sum_over_ranks([peak_of(ranks.device, dtype) or math.nan])
    if math.isnan(peak):
        if ranks.device.type == "cuda" and dtype == "bf16":
            name = torch.cuda.get_device_name(ranks.device)
            console.say(f"the bf16 peak of {name}, or of another rank's GPU, is not known, so no mfu is recorded")
        return Meter({}, None)
    models = {} if context.model_spec.family.hears else models_of(engine.module, context.specs)  # sound is no tokens
    works = {name: work_of(model, at_targets=is_told(task_of(learned, name))) for name, model in models.items()}
    if not works or None in works.values():
        console.say("the FLOPs of this model are not known, so no mfu is recorded")
    return Meter(works, peak)
