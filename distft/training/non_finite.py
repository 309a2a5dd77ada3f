"""Non-finite losses and gradients: the step changes no weight; then stop, skip or roll back.

stop      the attempt ends and names the batch
skip      the batch is skipped
rollback  the newest checkpoint is loaded and the steps since are trained again: what a machine did wrong comes out
          right then, and the run is as if nothing had happened. A batch that fails again is skipped.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import torch

from distft.checkpoint.state import Progress
from distft.data.loader import MicroBatch
from distft.errors import RunFailed
from distft.process import distributed
from distft.training.session import Session, restore, verification

MOST_IDS = 20  # in a message; metrics.jsonl has all


@dataclass(frozen=True)
class Trouble:
    """A step that was not taken. `parts` are this rank's losses, one a micro-batch of `micros`."""

    step: int
    loss: float
    norm: float
    micros: list[MicroBatch]
    parts: list[torch.Tensor]

    def __str__(self) -> str:
        if not math.isfinite(self.loss):
            return f"the loss of step {self.step} is {self.loss}"
        return f"the gradient norm of step {self.step} is {self.norm}"


def made_plain(part: torch.Tensor) -> torch.Tensor:
    """The same loss; one that is not finite is made to give gradients that are not finite either, on every machine."""
    return part * torch.where(torch.isfinite(part.detach()), 1.0, math.nan).to(part.dtype)


def handle(session: Session, trouble: Trouble) -> None:
    """Do what the recipe says. Collective.

    Raises:
        RunFailed: it says stop, or it happened too often.
    """
    train, samples = session.recipe.train, culprits(trouble)
    count = session.progress.non_finite + 1
    named = ", ".join(map(str, samples[:MOST_IDS])) + (", ..." if len(samples) > MOST_IDS else "")
    parts = {part.name: [str(one.path) for one in part.train] for part in session.recipe.parts()}
    source = ", ".join(parts.get(None) or sorted({micro.part for micro in trouble.micros if micro.part}))
    said = f"{trouble} (documents of {source}, counted from 0: {named})"
    if train.non_finite == "stop" or math.isfinite(trouble.norm):
        session.writer.wait()  # the save that is under way is of a step before
        raise RunFailed(
            f"{said}; nothing was saved after it. Look at the batch, start a new run with a lower train.lr, or "
            "continue with train.non_finite=skip or rollback"
        )
    if count > train.non_finite_budget:
        session.writer.wait()
        raise RunFailed(
            f"{said}; train.non_finite_budget {train.non_finite_budget} is used up, and nothing was saved after it"
        )
    go_back = train.non_finite == "rollback" and session.progress.rolled_back_at != trouble.step
    record = {"step": trouble.step, "attempt": session.attempt, "non_finite": str(trouble), "samples": samples}
    if not (go_back and may_go_back(session, count)):
        session.track.log({**record, "action": "skip"})
        session.console.say(f"{said}: the batch is skipped ({count} of {train.non_finite_budget})")
        session.allocator.after_step(trouble.step, None)
        session.progress = replace(passed_over(session, trouble.step), non_finite=count)
        return
    session.track.log({**record, "action": "rollback"})
    session.console.say(f"{said}: back to the newest checkpoint ({count} of {train.non_finite_budget})")
    back = restore(
        session.run,
        session.engine,
        session.allocator,
        session.identity,
        verification(session.run, session.ranks, f"rollback {count}"),
        session.console,
    )
    session.progress = replace(back, non_finite=count, rolled_back_at=trouble.step)
    session.saved = back.step
    session.meter.restart()


def may_go_back(session: Session, count: int) -> bool:
    """Whether there is a checkpoint yet, or one being written."""
    session.writer.wait()
    there = distributed.on_rank_0(
        session.ranks, f"checkpoints {count}", lambda: session.run.newest_commit() > 0, may_stop=False
    )
    return bool(there)


def culprits(trouble: Trouble) -> list[int]:
    """Ids of the documents whose loss is not finite, of all ranks; where all losses are, of the whole batch."""
    finite = [bool(torch.isfinite(part)) for part in trouble.parts]
    mine = [micro.samples for micro, good in zip(trouble.micros, finite, strict=True) if not good]
    if math.isfinite(trouble.loss):
        mine = [micro.samples for micro in trouble.micros]
    found = [json.loads(text) for text in distributed.gather_text(json.dumps(mine))]
    return sorted({sample for rank in found for micro in rank for row in micro for sample in row})


def passed_over(session: Session, step: int) -> Progress:
    """The progress after a step that was not taken."""
    return replace(session.progress, step=step, next_row=step * session.recipe.train.global_batch)
