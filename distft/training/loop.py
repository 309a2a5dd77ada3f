"""The training loop: steps, evaluations, saves, and an orderly stop."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distft.data.loader import Census, MicroBatch
from distft.engine.lr_schedule import learning_rate
from distft.errors import DONE, PREEMPTED
from distft.process import distributed, pulse, stop_signals
from distft.process.console import Bar, Console
from distft.recipe.load import load_resolved
from distft.run.chart import draw_chart
from distft.run.folder import RunDir
from distft.run.profile import BACKWARD, CHECKPOINT, DATA, FORWARD, OPTIMIZER
from distft.tasks.protocol import Learned, TellsEach
from distft.training import determinism, feed, non_finite, out_of_memory
from distft.training.evaluation import ended_early, evaluate_if_due, is_due
from distft.training.feed import Fed
from distft.training.non_finite import Trouble
from distft.training.session import Session
from distft.training.setup import prepare
from distft.training.source_losses import SourceLosses, losses_of


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
    with closing(session.feed), session.console.bar("step", session.total_steps, session.progress.step) as bar:
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
    task, engine = session.task, session.engine
    number = session.progress.step + 1
    note_saves(session)
    with session.profile.phase(DATA):
        totals, fed = session.feed.step(session.progress.step)
        counts: Mapping[str, float] | None = totals.counts
        if counts is None:  # the task cannot tell before it has seen them all
            fed = list(fed)
    if counts is None:
        counts = distributed.sum_by_name(sum_of_counts(task, fed))
    pulse.at(f"step {number}")
    passes = backward(session, number, fed, task.factors(counts))
    if session.reached is not None:
        session.reached.check()
        session.reached = None
    pulse.at(f"step {number}, the update")
    if session.writer.copies:
        with session.profile.phase(CHECKPOINT):
            session.writer.wait_for_copy()
    rate = learning_rate(session.recipe.train, number, session.total_steps)
    with session.profile.phase(OPTIMIZER):
        session.allocator.before_step()
        losses, of_sources, norm = passes.read(engine.step(rate))
    taken = source_figures(totals.census)
    streamed = session.stream.figures(number) if session.stream is not None else {}
    stops = {"stop": float(session.is_to_stop())}
    sums = distributed.sum_by_name(losses | passes.sums() | stops | streamed | of_sources)
    mean, stop = sums["loss"], sums["stop"] > 0
    note_samples(session, number, passes.micros)
    if session.stream is not None:
        session.stream.epochs = sums["epochs"]
        taken = {name: int(sums[name]) for name in streamed if name != "epochs"}
    if not (math.isfinite(mean) and math.isfinite(norm)):
        non_finite.handle(session, Trouble(number, mean, norm, passes.micros, passes.parts))
        return stop
    feed.check(number, counts, {name: sums[f"count.{name}"] for name in counts})
    allocated = session.allocator.after_step(number, norm)
    session.progress = replace(
        session.progress,
        step=number,
        next_row=number * session.recipe.train.global_batch,
        useful_tokens=session.progress.useful_tokens + int(sums["useful_tokens"]),
    )
    figures = session.meter.step(int(sums["useful_tokens"]), sums["flops"]) | session.memory.step()
    figures |= session.memory.compare(number, last=is_over(session))
    told = taken | (passes.sources.means(sums) if passes.sources is not None else {})
    record_step(session, bar, {name: sums[name] for name in losses}, rate, norm, told | figures)
    if allocated:
        session.track.log({"step": number, **allocated, "attempt": session.attempt})
    return stop


def sum_of_counts(task: Learned[Any], fed: Iterable[Fed]) -> dict[str, float]:
    """Of this rank's micro-batches."""
    found = dict.fromkeys(task.counted, 0.0)
    for one in fed:
        found.update({name: found[name] + count for name, count in task.counts(one.batch).items()})
    return found


@dataclass
class Passes:
    """What this rank's micro-batches of a step came to.

    Attributes:
        named: what each named loss adds to the loss, scalars on the device.
        parts: of the loss, one a micro-batch; scalars, fp32, on the device.
        counts: of targets, by name.
        sources: the losses of each of several sources, if the task tells them apart.
    """

    named: dict[str, torch.Tensor]
    counts: Counter[str]
    sources: SourceLosses | None = None
    micros: list[MicroBatch] = field(default_factory=list)
    parts: list[torch.Tensor] = field(default_factory=list)
    useful_tokens: int = 0
    flops: float = 0.0

    def read(self, norm: torch.Tensor) -> tuple[dict[str, float], dict[str, float], float]:
        """The losses, "loss" first, those of sources, and the norm: all at once, the only time in a step that we wait
        for the device."""
        scalars = [sum(self.parts, start=torch.zeros_like(self.parts[0])), *self.named.values()]
        together = torch.stack([*(scalar.to(norm.dtype) for scalar in scalars), norm.to(scalars[0].device)])
        if self.sources is not None:
            together = torch.cat([together.double(), self.sources.sums.flatten()])
        values: list[float] = together.tolist()
        losses = dict(zip(["loss", *(f"loss.{name}" for name in self.named)], values, strict=False))
        of_sources = {} if self.sources is None else self.sources.by_name(values[len(scalars) + 1 :])
        return losses, of_sources, values[len(scalars)]

    def sums(self) -> dict[str, float]:
        """What the ranks add up beside the loss."""
        counts = {f"count.{name}": count for name, count in self.counts.items()}
        return {"useful_tokens": self.useful_tokens, "flops": self.flops, **counts}


def backward(session: Session, number: int, fed: Iterable[Fed], factors: Mapping[str, float]) -> Passes:
    """Forward and backward of all micro-batches of step `number`."""
    task, engine, ranks = session.task, session.engine, session.ranks
    zero = torch.zeros((), device=ranks.device)
    passes = Passes(dict.fromkeys(factors, zero), Counter(dict.fromkeys(task.counted, 0)))
    if session.feed.sources and isinstance(task, TellsEach):
        passes.sources = SourceLosses(session.feed.sources, ranks.device)
    for one in taken(session, fed):
        pulse.at(f"step {number}, a micro-batch")
        seed_generators(session.recipe.train.seed, number, one.micro.index, ranks.device)
        with out_of_memory.explained(session.recipe, one.batch):
            with session.profile.phase(FORWARD):
                losses = losses_of(task, engine.model, one.batch, passes.sources, one.sources)
                weighted = {name: losses[name] * factors[name] for name in losses}
                part = sum(weighted.values(), start=zero)
            with session.profile.phase(BACKWARD):  # DeepSpeed divides by the world size
                engine.backward(non_finite.made_plain(part) * ranks.world, last=one.last)
        passes.micros.append(one.micro)
        passes.parts.append(part.detach())
        passes.named = {name: passes.named[name] + value.detach() for name, value in weighted.items()}
        passes.counts.update(task.counts(one.batch))
        passes.useful_tokens += one.batch.useful_tokens
        passes.flops += session.meter.flops(one.batch)
    return passes


def taken(session: Session, fed: Iterable[Fed]) -> Iterator[Fed]:
    """One after another; the time for which a step waits for them counts as data."""
    every = iter(fed)
    while True:
        with session.profile.phase(DATA):
            one = next(every, None)
        if one is None:
            return
        yield one


def seed_generators(seed: int, number: int, micro: int, device: torch.device) -> None:
    """Dropout depends on the place in the run only: not on history, and not on which rank computes it."""
    digest = hashlib.sha256(f"{seed} {number} {micro}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "little") >> 1
    torch.default_generator.manual_seed(drawn)  # torch.manual_seed takes a millisecond: it asks all kinds of devices
    if device.type == "cuda":
        torch.cuda.manual_seed(drawn)
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
        figures: what was measured, and what it took of each source.
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


def source_figures(census: Census | None) -> dict[str, int]:
    """How much a step takes of each of several sources."""
    if census is None:
        return {}
    found: dict[str, int] = {}
    for prefix, one in [("source", census), *((f"source.{task}", part) for task, part in census.parts.items())]:
        for name, share in one.sources.items():
            found |= {f"{prefix}.{name}.documents": share.documents, f"{prefix}.{name}.tokens": share.size}
    return found


def save(session: Session) -> None:
    """Begin a checkpoint of this step; it is written while training goes on."""
    pulse.at(f"the checkpoint of step {session.progress.step}")
    with session.profile.phase(CHECKPOINT):
        if session.stream is not None:
            where = session.stream.where(session.progress.step, session.run, session.ranks, session.console)
            session.progress = replace(session.progress, stream=where)
        session.writer.begin(session.engine, session.progress, session.allocator.state())
    session.saved = session.progress.step
    session.meter.restart()


def note_saves(session: Session) -> None:
    """Take down the checkpoints that came to exist. Raises what a save ran into."""
    for saved in session.writer.news():
        session.clock.saved(saved.seconds)
        figures = {"save_seconds": saved.seconds, "stall_seconds": saved.stall}
        session.track.log({"step": saved.step, **figures, "attempt": session.attempt})
        for note in saved.notes:
            session.console.say(note)


def tell_how_it_went(session: Session) -> None:
    """What there is to say when no step is left. The export begins when all ranks have ended, see `training.final`."""
    if session.stream is not None:
        session.stream.tell_notes(session.console)
    if session.progress.step < session.total_steps:
        patience, best = session.recipe.train.patience, session.recipe.train.best
        session.console.say(f"{best} of the held-out data has not improved in {patience} evaluations")
    if session.recipe.train.best is not None and session.progress.best_step:
        chosen = f"{session.recipe.train.best} {session.progress.best:.4f}"
        session.console.say(f"best checkpoint: step {session.progress.best_step}, {chosen}")
    if (verdict := session.allocator.verdict()) is not None:
        session.console.say(verdict)
