"""The best checkpoint by `train.best`: chosen during a run, and found again for export."""

from __future__ import annotations

import math
from dataclasses import replace

from distft.checkpoint import state, store
from distft.checkpoint.state import Progress, Stored
from distft.errors import UserError
from distft.recipe.schema import Recipe, Train
from distft.recipe.tasks import LOWER_IS_BETTER
from distft.run.folder import RunDir


def note_scores(progress: Progress, train: Train, scores: dict[str, float]) -> Progress:
    """The progress after an evaluation. What the run started from is no candidate: there is no checkpoint of it."""
    progress = replace(progress, last_eval=progress.step)
    if train.best is None or progress.step == 0:
        return progress
    if progress.best_of != train.best:  # the recipe asks for another score than before
        progress = replace(progress, best=None, best_of=train.best, best_step=0, stale=0)
    score = scores.get(train.best, math.nan)
    lower = train.best.rpartition(".")[2] in LOWER_IS_BETTER
    better = progress.best is None or (score < progress.best if lower else score > progress.best)
    if better and math.isfinite(score):
        return replace(progress, best=score, best_step=progress.step, stale=0)
    return replace(progress, stale=progress.stale + 1)


def choose_checkpoint(run: RunDir, recipe: Recipe, last: int = 0) -> Stored:
    """The checkpoint that a run is for: the best by the score that the recipe names, else the newest.

    Args:
        last: step of a checkpoint that must be there, for it has what the run was trained to.

    Raises:
        UserError: it has none yet, or the last one cannot be used.
    """
    folder, passed_over = state.newest(run.checkpoints)
    if folder is None:
        raise UserError(f"{run.path} has no checkpoint yet; `distft status {run.path}` shows its progress")
    if store.step_of(folder) < last:
        raise UserError(
            f"{'; '.join(passed_over)}; restore it from a copy, or remove {store.folder_of(run.checkpoints, last)}: "
            f"the same command then trains again what came after step {store.step_of(folder)}"
        )
    stored = Stored(folder)
    progress = stored.progress
    if progress.last_eval < progress.step:  # it was saved before the evaluation that a stop had broken off
        progress = note_scores(progress, recipe.train, scores_at(run, progress.step))
    best = store.folder_of(run.checkpoints, progress.best_step)
    if recipe.train.best is None or best == folder or not progress.best_step:
        return stored
    if (flaw := store.flaw(best)) is not None:
        raise UserError(f"the best checkpoint, {best}, cannot be used ({flaw}); remove train.best to use the newest")
    return Stored(best)


def scores_at(run: RunDir, step: int) -> dict[str, float]:
    """Of the held-out data, as they were recorded last; empty where there was no evaluation."""
    found = [record for record in run.records() if record.get("step") == step and "eval_loss" in record]
    return {name.removeprefix("eval_"): value for name, value in found[-1].items()} if found else {}
