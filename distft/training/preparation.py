"""Preparation: the data of a recipe, encoded ahead of the job that trains on them (`distft encode`)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers.utils import logging

from distft.data import token_cache
from distft.data.corpus import Corpus, Meta
from distft.data.sources import sources_of
from distft.errors import Preempted
from distft.model.context import RunContext
from distft.process import stop_signals
from distft.process.console import Console, duration
from distft.recipe.schema import Recipe
from distft.recipe.sources import Which
from distft.run.commits import pinned
from distft.run.folder import RunDir
from distft.training import hub_commits, repetition
from distft.training.datasets import opened
from distft.training.filling import fill_cache, name_of
from distft.training.preview import without_weights


@dataclass(frozen=True)
class Prepared:
    """Encoded data of a source. `bad`: records that were left out; `seconds`: it took."""

    name: str
    folder: Path
    meta: Meta
    bad: int
    seconds: float

    def __str__(self) -> str:
        meta = self.meta
        text = f"data.{self.name}: {meta.records:,} records, {meta.documents:,} documents, {meta.size:,} tokens "
        text += f"({meta.targets:,} to predict)" + "".join(
            f"; {number:,} {note}" for note, number in meta.notes.items()
        )
        if self.bad:
            text += f"; {self.bad:,} bad records left out"
        lines = [text, f"  in {self.folder} after {duration(self.seconds)}"]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in meta.warnings.values())])


def prepare(recipe: Recipe, workers: int | None, console: Console) -> Iterator[Prepared | str]:
    """Encode the training and held-out data of all tasks, unless the token cache has them; then what is there more than
    once, in sentences.

    Args:
        workers: processes at a time; None: one per core that this process may use.

    Raises:
        UserError: as a run would that reads these data.
        Preempted: a stop was requested; the next call goes on.
    """
    try:
        yield from _prepared(recipe, workers, console)
    except Preempted:  # whoever noticed it; there is no attempt here, and no step
        raise Preempted(
            "stopped on request; what was encoded is kept, and the same command goes on from there"
        ) from None


def _prepared(recipe: Recipe, workers: int | None, console: Console) -> Iterator[Prepared | str]:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says that it has found none
    logging.disable_progress_bar()
    stop_signals.listen()
    with TemporaryDirectory(prefix="distft-encode-") as folder:
        run = RunDir(Path(folder))
        recipe = pinned(recipe, hub_commits.settle_alone(run, recipe, console))
        context = RunContext(run, without_weights(recipe))
        for part in recipe.parts():
            folders: dict[Which, list[Path]] = {"train": [], "eval": []}
            for which, its in folders.items():
                for source in sources_of(part, which):
                    begun = time.monotonic()
                    its.append(
                        fill_cache(context, part, which, source, console, stop_signals.check, workers, verify=True)
                    )
                    bad, meta = len(token_cache.left_out(its[-1], source)), opened(context, part, which, its)[-1].meta
                    yield Prepared(name_of(part, which, source), its[-1], meta, bad, time.monotonic() - begun)
            train, held = (opened(context, part, which, its) for which, its in folders.items())
            yield from repetition.told(part, Corpus(*train), Corpus(*held) if held else None, folders["train"])
