"""Learning-rate schedules as pure functions of the step, with no state to save."""

from __future__ import annotations

import math

from distft.recipe.schema import Train


def learning_rate(train: Train, step: int, total: int) -> float:
    """The rate of optimizer step `step` (counted from 1) of `total`.

    Linear warm-up over `train.warmup` steps, then down to zero just after the last step: along a half
    cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts), linearly, or not at all.
    """
    if step <= train.warmup:
        return train.lr * step / train.warmup
    progress = (step - 1 - train.warmup) / max(1, total - train.warmup)
    if train.schedule == "cosine":
        return train.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    if train.schedule == "linear":
        return train.lr * (1.0 - progress)
    return train.lr
