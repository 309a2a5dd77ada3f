"""`distft status`: the state of runs, from their folders and from what their schedulers say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distft.commands.run_search import find
from distft.errors import UserError
from distft.launcher import Outlook, find_launcher
from distft.recipe.load import load_resolved
from distft.recipe.schema import Recipe
from distft.run import lease
from distft.run.file_system import refusal
from distft.run.folder import Attempt, Run, RunDir, only_export

RECENT = 20  # steps over which the speed is averaged
WAITS = {"pending": "queued", "held": "queued", "blocked": "blocked"}  # the states of runs whose jobs wait


@dataclass(frozen=True)
class Status:
    """What there is to know about a run without asking its processes."""

    run_dir: str
    name: str
    state: str
    step: int
    total_steps: int | None  # None: the recipe counts epochs and no step was recorded yet
    loss: float | None
    eval_loss: float | None
    useful_tokens_per_s: float | None
    mfu: float | None  # None: the GPU's peak, or the model's FLOPs, are not known
    memory_bytes: float | None  # of the rank that needs most: reserved on its GPU, resident on a CPU
    memory_rank: int | None
    eta_seconds: float | None
    attempts: list[Attempt]
    reason: str | None  # why it is held, or what keeps it from going on
    excluded: list[str]  # hosts on which attempts failed twice
    job: Outlook | None  # what its scheduler says


def all_statuses(folders: list[Path]) -> tuple[list[Status], list[str]]:
    """The status of each run that is, or is below, one of the folders, by default ./runs; and what is wrong with runs
    that nobody named.

    Raises:
        UserError: something is wrong with a run that was named.
    """
    runs, broken = find(folders)
    named = {folder.absolute() for folder in folders}
    read: list[tuple[RunDir, Run]] = []
    for run in runs:
        with noted(run, named, broken):
            read.append((run, run.read()))
    outlooks = outlooks_of(read)
    statuses: list[Status] = []
    for run, content in read:
        with noted(run, named, broken):
            statuses.append(status_of(run, content, outlooks.get(run.path)))
    return statuses, broken


@contextmanager
def noted(run: RunDir, named: set[Path], broken: list[str]) -> Iterator[None]:
    """What cannot be read of a run is a sentence in `broken`, or an error if the run was named."""
    try:
        yield
    except (UserError, OSError) as error:
        sentence = str(error)
        if isinstance(error, OSError):
            said = (error.strerror or "refused").lower()
            sentence = f"{error.filename or run.path} cannot be read: {said}"
        if run.path in named:
            raise UserError(sentence) from None
        broken.append(sentence)


def outlooks_of(read: list[tuple[RunDir, Run]]) -> dict[Path, Outlook | None]:
    """What the launchers know about runs that are not done. Each is asked once."""
    found: dict[Path, Outlook | None] = {}
    going = [(run, content) for run, content in read if content.state != "done"]
    for name in {content.launcher: None for _, content in going}:
        theirs = [(run, content) for run, content in going if content.launcher == name]
        try:
            answers = find_launcher(name).outlooks([run for run, _ in theirs])
        except UserError as error:  # a package that is not installed here
            answers = [Outlook(last_job(content), "unknown", str(error)) for _, content in theirs]
        found |= {run.path: answer for (run, _), answer in zip(theirs, answers, strict=True)}
    return found


def last_job(content: Run) -> str:
    return next((attempt.job for attempt in reversed(content.attempts) if attempt.job), "")


def status_of(run: RunDir, content: Run, outlook: Outlook | None) -> Status:
    """The status of one run.

    Raises:
        UserError: its recipe is damaged.
    """
    recipe = load_resolved(run.config)
    recent, eval_loss = last_figures(run, recipe)
    last = recent[0] if recent else {}
    memory: dict[str, Any] = next((record for record in recent if "worst_memory_bytes" in record), {})
    seconds = sum(record["seconds"] for record in recent)
    total = total_steps(recipe, last)
    state = state_of(run, content, outlook)
    if state == "running" and content.trained:
        state = "exporting"
    running = state == "running" and total is not None and recent
    return Status(
        run_dir=str(run.path),
        name=content.name,
        state=state,
        step=last.get("step", 0),
        total_steps=total,
        loss=last.get("loss"),
        eval_loss=eval_loss,
        useful_tokens_per_s=averaged(recent, "useful_tokens_per_s"),
        mfu=averaged(recent, "mfu"),
        memory_bytes=memory.get("worst_memory_reserved_bytes", memory.get("worst_memory_bytes")),
        memory_rank=memory.get("worst_memory_rank"),
        eta_seconds=(total - last["step"]) * seconds / len(recent) if running and total is not None else None,
        attempts=[
            dataclasses.replace(
                attempt, cause=outlook.causes.get(attempt.number, attempt.cause) if outlook else attempt.cause
            )
            for attempt in content.attempts
        ],
        reason=reason_of(run, content, state),
        excluded=content.excluded,
        job=outlook,
    )


def reason_of(run: RunDir, content: Run, state: str) -> str | None:
    """Why a run is held, what keeps it from going on, or that only its export is missing."""
    if state == "done":
        return None
    missing = only_export(run.path) if content.trained and state in ("trained", "held", "cancelled", "lost") else None
    return "; ".join(filter(None, [content.reason if state == "held" else refusal(run.path), missing])) or None


def averaged(records: list[dict[str, Any]], key: str) -> float | None:
    """A rate over the time of those steps that have it."""
    having = [record for record in records if key in record]
    seconds = sum(record["seconds"] for record in having)
    return sum(record[key] * record["seconds"] for record in having) / seconds if seconds else None


def state_of(run: RunDir, content: Run, outlook: Outlook | None) -> str:
    """The state in run.json, unless its processes are gone and could not say so, or its scheduler knows better."""
    seen = outlook.state if outlook is not None else ""
    if content.state == "done":
        return "done"
    if seen in WAITS:
        return WAITS[seen]
    if seen in ("starting", "suspended"):
        return seen
    if outlook is not None and outlook.cancelled:
        return "cancelled"
    works = seen != "gone" and lease.alive(run)
    if seen == "ending" and (works or content.state == "running"):
        return "ending"
    if seen in ("running", "unknown") and works:
        return "running"
    if seen == "running":
        return "starting"
    if content.state != "running" or works:
        return content.state
    return "unknown" if seen == "unknown" else "lost"  # lost: the same command continues it


def last_figures(run: RunDir, recipe: Recipe) -> tuple[list[dict[str, Any]], float | None]:
    """The records of the last RECENT steps, newest first, and the last held-out loss. They are as they were recorded:
    an attempt may train steps again that were lost. Where one is evaluated now and then, the last evaluation is not
    further back than the time between two; no more is read."""
    recent: list[dict[str, Any]] = []
    eval_loss = None
    for record in run.newest_records():
        if "loss" in record and len(recent) < RECENT:
            recent.append(record)
        if eval_loss is None:
            eval_loss = record.get("eval_loss")
        far = recent and record.get("step", 0) < recent[0]["step"] - (recipe.train.eval_every or 0)
        if len(recent) == RECENT and (eval_loss is not None or far):
            break
    return recent, eval_loss


def total_steps(recipe: Recipe, last: dict[str, Any]) -> int | None:
    train = recipe.train
    if train.steps is not None:
        return train.steps
    if not last or not last.get("epoch") or train.epochs is None:
        return None
    rows = round(int(last["step"]) * train.global_batch / float(last["epoch"]))
    return math.ceil(max(1, round(train.epochs * rows)) / train.global_batch)  # as feed.length counts them


def as_json(statuses: list[Status]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(status) for status in statuses]
