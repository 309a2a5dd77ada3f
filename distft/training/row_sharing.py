"""Whether documents share rows: as the recipe says, else as a trial finds that the model keeps them apart."""

from __future__ import annotations

import json
from typing import Any

from distft.engine.deepspeed import Engine
from distft.errors import UserError
from distft.process import distributed
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.run.files import write_atomically
from distft.run.folder import RunDir
from distft.tasks.causal_lm import Causal
from distft.tasks.protocol import Learned, ModelSpec
from distft.training import datasets


def begin(run: RunDir, recipe: Recipe, spec: ModelSpec, ranks: Ranks) -> tuple[bool, bool]:
    """(whether documents share rows, as far as it is known without the model; whether that is still to be tried).

    A run that has a checkpoint keeps what was found before its first step. Collective.
    """

    def look() -> tuple[bool, bool]:
        begun, wanted = run.newest_commit() > 0, datasets.packs(recipe, spec)
        found = begun and recipe.data.packing is None and run.packing.exists()
        return wanted and not found, not begun

    shares, is_new = distributed.on_rank_0(ranks, "packing", look)
    return shares, shares and is_new and spec.packs


def keeps_apart(task: Causal, engine: Engine, ranks: Ranks) -> bool:
    """Whether the model keeps documents in a row apart, found by trying. Collective."""
    embeddings = engine.module.get_input_embeddings()  # type: ignore[operator]
    vocabulary = getattr(embeddings, "base_layer", embeddings).num_embeddings  # of an adapter's own
    engine.model.eval()
    leaks = task.documents_leak(engine.model, vocabulary, ranks.device)
    engine.model.train()
    [found] = distributed.sum_over_ranks([float(leaks)])
    return found == 0


def settle(run: RunDir, recipe: Recipe, task: Learned[Any], engine: Engine, ranks: Ranks, console: Console) -> bool:
    """Whether documents share rows, by a trial with the model, which is remembered. Collective.

    Raises:
        UserError: the recipe asks for it, and the model does not keep them apart.
    """
    if not isinstance(task, Causal) or keeps_apart(task, engine, ranks):
        distributed.on_rank_0(ranks, "packing/kept", lambda: run.packing.unlink(missing_ok=True))
        return True
    if recipe.data.packing:
        raise UserError(
            "data.packing: this model lets documents in one row see each other; leave it out, or set it to false"
        )
    text = json.dumps({"packing": False}) + "\n"
    distributed.on_rank_0(ranks, "packing/kept", lambda: write_atomically(run.packing, text))
    console.say(
        "data.packing: this model lets documents in one row see each other, so each row holds one, and "
        "train.global_batch counts documents"
    )
    return False
