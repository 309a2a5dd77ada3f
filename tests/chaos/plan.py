"""Trials, drawn from a seed: a configuration, and what is killed in it and when."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

STEPS, EVERY, EVAL_EVERY = 40, 8, 20
SAVE_PLACES = (
    "rank-0000{rank}.safetensors is not synced",
    "rank-0000{rank}.safetensors is written",
    "state.json is written",
    "manifest.json is written",
    "the checkpoint is not renamed",
    "the rename is not synced",
    "the checkpoint is committed",
    "an old checkpoint is half removed",
)
OF_RANK_0 = SAVE_PLACES[2:]
EXPORT = "the export"
PLACES = (
    "the data of step {step}",
    "step {step}, a micro-batch",
    "step {step}, the update",
    "the evaluation",
    EXPORT,
)
EARLY_PLACES = (
    "the meeting of all ranks",
    "the base model",
    "the data",
    "the model",
    "the checkpoint to continue from",
)


@dataclass(frozen=True)
class Configuration:
    adapter: Literal["lora", "full"]
    zero_stage: int
    dtype: Literal["fp32", "bf16"]
    ranks: int

    def __str__(self) -> str:
        return f"{self.adapter}-zero{self.zero_stage}-{self.dtype}-{self.ranks}"


@dataclass(frozen=True)
class Kill:
    """SIGKILL. At a `place` within a rank, or `seconds` after a `step` was recorded (0: after the ranks exist)."""

    victim: Literal["rank", "all ranks", "parent"]
    rank: int
    place: str | None = None
    step: int = 0
    seconds: float = 0.0

    @property
    def in_save(self) -> bool:
        return self.place is not None and self.place in {p.format(rank=self.rank) for p in SAVE_PLACES}

    def __str__(self) -> str:
        who = f"rank {self.rank}" if self.victim == "rank" else self.victim
        return f"{who} at {self.place!r}" if self.place else f"{who} {self.seconds:.3f} s after step {self.step}"


@dataclass(frozen=True)
class Trial:
    """Attempts that are killed one after the other, and one that is not."""

    number: int
    configuration: Configuration
    kills: tuple[Kill, ...]


def trial(seed: int, number: int) -> Trial:
    """The trial of this number; the same for the same seed, whatever other trials there are."""
    chance = random.Random(f"{seed} {number}")
    configuration = Configuration(
        adapter=chance.choice(("lora", "full")),
        zero_stage=chance.choice((1, 2, 3)),
        dtype=chance.choice(("fp32", "bf16")),
        ranks=chance.choice((1, 2, 2, 4)),
    )
    steps = sorted(chance.sample(range(1, STEPS), 2))  # kills move forward, so that each happens
    return Trial(number, configuration, tuple(kill(chance, configuration.ranks, step) for step in steps))


def kill(chance: random.Random, ranks: int, step: int) -> Kill:
    """3 % before the first step of an attempt, 30 % in a save, 22 % at other places, the rest at random instants."""
    rank, drawn = chance.randrange(ranks), chance.random()
    if drawn < 0.03:
        return Kill("rank", rank, place=chance.choice(EARLY_PLACES))
    if drawn < 0.33:
        place = chance.choice(SAVE_PLACES)
        rank = 0 if place in OF_RANK_0 else rank
        return Kill("rank", rank, place=place.format(rank=rank))
    if drawn < 0.55:
        place = chance.choice(PLACES)
        rank = 0 if place == EXPORT else rank  # when the ranks have ended, in a process that counts as rank 0
        return Kill("rank", rank, place=place.format(step=step))
    victim: Literal["rank", "all ranks", "parent"] = chance.choice(("rank", "all ranks", "parent"))
    return Kill(victim, rank, step=step, seconds=chance.uniform(0.0, 0.2))
