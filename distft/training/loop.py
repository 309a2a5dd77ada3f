"""The training loop: steps, evaluations, saves, and an orderly stop."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distft.data.loader import MicroBatch
from distft.engine.lr_schedule import learning_rate
from distft.errors import DONE, PREEMPTED
from distft.process import distributed, pulse, stop_signals
from distft.process.console import Bar, Console
from distft.recipe.load import load_resolved
from distft.run.chart import draw_chart
from distft.run.folder import RunDir
from distft.run.profile import BACKWARD, CHECKPOINT, DATA, FORWARD, OPTIMIZER
from distft.tasks.protocol import collated
from distft.training import determinism, non_finite, out_of_memory
from distft.training.evaluation import ended_early, evaluate_if_due, is_due
from distft.training.non_finite import Trouble
from distft.training.session import Session
from distft.training.setup import prepare


def run_attempt(run_dir: Path) -> int:
    """One rank's part in one attempt. Returns its exit code.

    Raises:
        UserError, RunFailed, Preempted: see `distft.errors`.
    """
    run = RunDir(run_dir)
    recipe = load_resolved(run.config)
    pulse.begin()
    stop_signals.check()
    pulse.at("the meeting of all ranks")
    with out_of_memory.explained(recipe), determinism.asked_for(recipe):
        ranks = distributed.init(recipe.engine.timeout)
        session = prepare(run, recipe, ranks, Console(ranks.first))
        code = train(session)
    session.track.finish()
    if ranks.first and code == DONE:  # an attempt that was told to stop has better to do with its last seconds
        draw_chart(run)
    distributed.leave_group()
    return code


def train(session: Session) -> int:
    """Steps until the run is finished (DONE) or a stop was agreed on and saved (PREEMPTED). Collective."""
    with session.console.bar("step", session.total_steps, session.progress.step) as bar:
        stop = evaluate_if_due(session)
        while not (stop or is_over(session)):
            with session.profile.step(session.progress.step + 1, session.total_steps):
                stop = step(session, bar)
                stop = stop or evaluate_if_due(session)
                if (stop or is_to_be_saved(session)) and session.progress.step != session.saved:
                    save(session)
            session.profile.settle(stop, is_over(session))
    pulse.at("the end of the save")
    session.writer.wait()
    note_saves(session)
    if stop:
        why = "on request" if stop_signals.requested() else "before the time limit"
        session.console.say(f"stopped {why} after step {session.progress.step}; the same command continues the run")
        return PREEMPTED
    tell_how_it_went(session)
    return DONE


def is_over(session: Session) -> bool:
    return session.progress.step >= session.total_steps or ended_early(session)


def is_to_be_saved(session: Session) -> bool:
    """After so many steps, at the end, and where the held-out data came out best."""
    best = session.progress.best_step == session.progress.step
    return is_due(session, session.recipe.checkpoint.every) or best or ended_early(session)


def step(session: Session, bar: Bar) -> bool:
    """One optimizer step over the global batch. Returns whether the ranks agreed to stop after it."""
    task, engine, ranks, loader = session.task, session.engine, session.ranks, session.loader
    number = session.progress.step + 1
    note_saves(session)
    pulse.at(f"the data of step {number}")
    with session.profile.phase(DATA):
        micros = list(loader.step(session.progress.step))
        batches = [collated(task, loader.documents(micro), ranks.device) for micro in micros]
    pulse.at(f"step {number}")
    counts = [task.counts(batch) for batch in batches]
    mine = [sum(count.get(name, 0) for count in counts) for name in task.counted]
    tokens, flops = sum(batch.useful_tokens for batch in batches), sum(map(session.meter.flops, batches))
    *totals, useful, flops = distributed.sum_over_ranks([*mine, tokens, flops])
    factors = task.factors(dict(zip(task.counted, totals, strict=True)))
    parts, named = backward(session, number, list(zip(micros, batches, strict=True)), factors)
    if session.reached is not None:
        session.reached.check()
        session.reached = None
    pulse.at(f"step {number}, the update")
    own = torch.stack([sum(parts, start=torch.zeros_like(parts[0])), *named.values()]).tolist()
    mean, *by_name, stop = distributed.sum_over_ranks([*own, float(session.is_to_stop())])
    rate = learning_rate(session.recipe.train, number, session.total_steps)
    with session.profile.phase(OPTIMIZER):
        session.allocator.before_step()
        norm = engine.step(rate)
    note_samples(session, number, micros)
    if not (math.isfinite(mean) and math.isfinite(norm)):
        non_finite.handle(session, Trouble(number, mean, norm, micros, parts))
        return stop > 0
    allocated = session.allocator.after_step(number, norm)
    session.progress = replace(
        session.progress,
        step=number,
        next_row=number * session.recipe.train.global_batch,
        useful_tokens=session.progress.useful_tokens + int(useful),
    )
    found = {f"loss.{name}": value for name, value in zip(named, by_name, strict=True)}
    figures = session.meter.step(int(useful), flops) | session.memory.step()
    figures |= session.memory.compare(number, last=is_over(session))
    record_step(session, bar, {"loss": mean, **found}, rate, norm, figures)
    if allocated:
        session.track.log({"step": number, **allocated, "attempt": session.attempt})
    return stop > 0


def backward(
    session: Session, number: int, micros: list[tuple[MicroBatch, Any]], factors: Mapping[str, float]
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Forward and backward of all micro-batches of step `number`.

    Returns:
        This rank's part of the loss: by micro-batch, and by the name of a loss; scalars, fp32.
    """
    engine, ranks = session.engine, session.ranks
    zero = torch.zeros((), device=ranks.device)
    parts, named = [], dict.fromkeys(factors, zero)
    for micro, batch in micros:
        pulse.at(f"step {number}, a micro-batch")
        seed_generators(session.recipe.train.seed, number, micro.index)
        with out_of_memory.explained(session.recipe, batch):
            with session.profile.phase(FORWARD):
                losses = session.task.loss(engine.model, batch)
                weighted = {name: losses[name] * factors[name] for name in losses}
                part = sum(weighted.values(), start=zero)
            with session.profile.phase(BACKWARD):  # DeepSpeed divides by the world size
                engine.backward(non_finite.made_plain(part) * ranks.world, last=micro is micros[-1][0])
        parts.append(part.detach())
        named = {name: named[name] + value.detach() for name, value in weighted.items()}
    return parts, named


def seed_generators(seed: int, number: int, micro: int) -> None:
    """Dropout depends on the place in the run only: not on history, and not on which rank computes it."""
    digest = hashlib.sha256(f"{seed} {number} {micro}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    np.random.seed(int.from_bytes(digest[8:12], "little"))  # some models of transformers draw masks from it


def note_samples(session: Session, number: int, micros: list[MicroBatch]) -> None:
    if not session.recipe.track.samples:
        return
    path = session.run.attempt_logs(session.attempt) / f"rank-{session.ranks.rank}.samples.jsonl"
    with open(path, "a", encoding="utf-8") as file:
        for micro in micros:
            file.write(json.dumps({"step": number, "micro_batch": micro.index, "samples": micro.samples}) + "\n")


def record_step(
    session: Session, bar: Bar, losses: dict[str, float], rate: float, norm: float, figures: dict[str, float]
) -> None:
    """Record a step.

    Args:
        losses: "loss", and what each named loss adds to it as "loss.NAME".
        figures: what was measured.
    """
    if session.ranks.first:
        session.fence.check()
    session.clock.stepped(figures["seconds"])
    progress = session.progress
    session.track.log(
        {
            "step": progress.step,
            **losses,
            "lr": rate,
            "grad_norm": norm,
            "tokens": progress.useful_tokens,
            "epoch": session.epoch,
            "attempt": session.attempt,
            **session.allocator.figures(progress.step),
            **figures,
        }
    )
    bar.at(progress.step, f"loss {losses['loss']:.4f} · {figures['useful_tokens_per_s']:,.0f} useful tokens/s")


def save(session: Session) -> None:
    """Begin a checkpoint of this step; it is written while training goes on."""
    pulse.at(f"the checkpoint of step {session.progress.step}")
    with session.profile.phase(CHECKPOINT):
        session.writer.begin(session.engine, session.progress, session.allocator.state())
    session.saved = session.progress.step
    session.meter.restart()


def note_saves(session: Session) -> None:
    """Take down the checkpoints that came to exist. Raises what a save ran into."""
    for saved in session.writer.news():
        session.clock.saved(saved.seconds)
        figures = {"save_seconds": saved.seconds, "stall_seconds": saved.stall}
        session.track.log({"step": saved.step, **figures, "attempt": session.attempt})


def tell_how_it_went(session: Session) -> None:
    """What there is to say when no step is left. The export begins when all ranks have ended, see `training.final`."""
    if session.progress.step < session.total_steps:
        patience, best = session.recipe.train.patience, session.recipe.train.best
        session.console.say(f"{best} of the held-out data has not improved in {patience} evaluations")
    if session.recipe.train.best is not None and session.progress.best_step:
        chosen = f"{session.recipe.train.best} {session.progress.best:.4f}"
        session.console.say(f"best checkpoint: step {session.progress.best_step}, {chosen}")
    if (verdict := session.allocator.verdict()) is not None:
        session.console.say(verdict)
