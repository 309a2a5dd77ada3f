"""Whether logits are made a chunk of targets at a time: as the recipe says, if a trial finds that it works."""

from __future__ import annotations

from typing import Any

from distft.engine.deepspeed import Engine
from distft.process import distributed
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.tasks.multi_task import models_of, task_of, view_of
from distft.tasks.protocol import Learned
from distft.tasks.shared.chunked_head import ChunkedHead, Scored, find


def settle(recipe: Recipe, learned: Learned[Any], engine: Engine, ranks: Ranks, console: Console) -> None:
    """Hand the tasks that predict tokens a head that is told the targets. Collective."""
    tasks = {part.name: task_of(learned, part.name) for part in recipe.parts()} if recipe.engine.loss_chunk else {}
    for name, task in tasks.items():
        if not isinstance(task, Scored):
            continue
        view = view_of(engine.model, name)
        engine.model.eval()
        found = find(
            models_of(engine.module, [name])[name],
            recipe.engine.loss_chunk,
            lambda vocabulary, task=task, view=view: task.few(view, vocabulary, ranks.device),  # type: ignore[misc]
        )
        engine.model.train()
        [failed] = distributed.sum_over_ranks([float(isinstance(found, str))])
        if not failed and isinstance(found, ChunkedHead):
            task.take_head(found)
            continue
        why = found if isinstance(found, str) else "not on all ranks"
        console.say(f"engine.loss_chunk: the logits of all targets are computed at once with this model ({why})")
