"""Filling the token cache: rank 0 writes it, and one rank for each set of cores encodes parts of what it writes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from distft.data import token_cache
from distft.data.crew import Crew, Offer
from distft.data.records import Cuts, Encoder
from distft.data.sources import Source, sources_of
from distft.errors import UserError
from distft.model.context import RunContext
from distft.process import pulse, stop_signals
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.sources import Which
from distft.recipe.tasks import TaskPart


def name_of(part: TaskPart, which: Which, source: Source | None = None) -> str:
    """For people: "train", or "train of NAME" where there are several tasks; with the source, where it is one of
    several."""
    name = f"{which} of {part.name}" if part.name else which
    several = len(part.train if which == "train" else part.eval) > 1
    return f"{name}: {source.title}" if source is not None and several else name


def fill_cache(
    context: RunContext,
    part: TaskPart,
    which: Which,
    source: Source,
    console: Console,
    check_stop: Callable[[], None],
    workers: int | None = None,
    verify: bool = False,
    crew: Crew | None = None,
) -> Path:
    """The cache folder of a source, written first unless it is there already. See `token_cache.build_cache`."""
    cache = context.recipe.data.cache
    with console.bar(f"data.{name_of(part, which, source)}: records", total=None) as bar:

        def show(number: int) -> None:
            pulse.moving()
            bar.at(number, "")

        encoder = uncut(context.encoder(part.name, source))
        return token_cache.build_cache(
            source, encoder, cache, check_stop, show, bar.expect, workers, console.say, verify, crew
        )


def uncut(encoder: Encoder) -> Encoder:
    """The cache has whole documents."""
    return encoder.uncut if isinstance(encoder, Cuts) else encoder


class Helper:
    """A rank that encodes parts for rank 0 while it waits, if no other rank of its node runs on the same cores."""

    def __init__(self, context: RunContext, part: TaskPart, which: Which, ranks: Ranks, crew: Crew) -> None:
        self._context, self._part, self._which, self._ranks, self._crew = context, part, which, ranks, crew
        self._seen: Offer | None = None

    def help_out(self) -> None:
        """Help with the newest offer, if it is a new one, until no part is left."""
        offer = self._crew.offered()
        if offer is None or offer == self._seen:
            return
        self._seen = offer
        crew = Crew(self._crew.store, self._crew.name, offer.source)
        if crew.is_over() or not self._has_free_cores(offer, crew):
            return
        source = sources_of(self._part, self._which)[offer.source]
        try:
            encoder = uncut(self._context.encoder(self._part.name, source))
            cache = self._context.recipe.data.cache
            token_cache.help_build(source, encoder, cache, stop_signals.check, moved, offer, crew)
        except (UserError, OSError) as error:  # rank 0 does without
            print(f"rank {self._ranks.rank} does not help to encode {source.name}: {error}", flush=True)

    def _has_free_cores(self, offer: Offer, crew: Crew) -> bool:
        mine, node = sorted(os.sched_getaffinity(0)), self._ranks.rank - self._ranks.local_rank
        if node == 0 and mine == offer.cores:
            return False  # rank 0's own processes run on them
        return crew.is_first(f"node {node}, cores {hashlib.sha256(repr(mine).encode()).hexdigest()}")


def moved(records: int) -> None:
    pulse.moving()
