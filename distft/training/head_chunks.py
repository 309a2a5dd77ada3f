"""Whether logits are made a chunk of targets at a time: as the recipe says, if a trial finds that it works."""

from __future__ import annotations

from typing import Any

import torch

from distft.engine.deepspeed import Engine
from distft.process import distributed
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.recipe.tasks import TaskName
from distft.tasks.multi_task import models_of, task_of, view_of
from distft.tasks.protocol import Learned
from distft.tasks.shared.chunked_head import ChunkedHead, Scored, find


def settle(recipe: Recipe, learned: Learned[Any], engine: Engine, ranks: Ranks, console: Console) -> None:
    """Hand the tasks that predict tokens a head that is told the targets. Collective."""
    for part in recipe.parts():
        task = task_of(learned, part.name)
        if not recipe.engine.loss_chunk or not isinstance(task, Scored):
            continue
        engine.model.eval()
        found = try_head(recipe, task, engine.model, part.name, ranks.device)
        engine.model.train()
        [failed] = distributed.sum_over_ranks([float(isinstance(found, str))])
        if not failed and isinstance(found, ChunkedHead):
            task.head = found
            continue
        why = found if isinstance(found, str) else "not on all ranks"
        console.say(f"engine.loss_chunk: the logits of all targets are computed at once with this model ({why})")


def try_head(recipe: Recipe, task: Scored, model: Any, name: TaskName, device: torch.device) -> ChunkedHead | str:
    """The head, or why it cannot be told the targets. `model`: in evaluation mode. Collective under ZeRO-3."""
    view = view_of(model, name)
    module = models_of(getattr(model, "module", model), [name])[name]
    return find(module, recipe.engine.loss_chunk, lambda vocabulary: task.few(view, vocabulary, device))
