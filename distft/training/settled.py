"""What a run has settled for `auto`, as its checkpoints keep it; a run that has lost it does not choose anew unsaid."""

from __future__ import annotations

from distft.model import attention
from distft.process import distributed
from distft.process.distributed import Ranks
from distft.recipe.batch import AUTO
from distft.recipe.schema import Recipe
from distft.run.folder import RunDir


def found(run: RunDir, asked: Recipe, recipe: Recipe, ranks: Ranks) -> dict[str, str]:
    """Values by key of the recipe. Collective.

    Of attention only whether it may be by document is kept: machines may choose another one between attempts.

    Args:
        asked: the recipe as it is written.
        recipe: the same without `auto`.
    """
    settled = {}
    if asked.train.micro_batch == AUTO:
        settled["train.micro_batch"] = str(recipe.train.micro_rows)
    if asked.model.activation_checkpointing == AUTO:
        settled["model.activation_checkpointing"] = recipe.model.activation_checkpointing
    if asked.model.attention == AUTO:
        settled["model.attention"] = distributed.on_rank_0(ranks, "attention/settled", lambda: _attention(run))
    return settled


def _attention(run: RunDir) -> str:
    if not attention.takes_documents(run, starts=False):
        return "with masks"
    return "by document, in the last layer what is read" if attention.leaves_out(run) else "by document"
