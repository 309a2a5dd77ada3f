"""What a run reads from the hub stays what it was: revisions are settled as commits at its first start (hub.json)."""

from __future__ import annotations

from distft.data import hub, places
from distft.model import base_model
from distft.process import distributed
from distft.process.console import Console
from distft.process.distributed import Ranks
from distft.recipe.schema import Recipe
from distft.run.commits import Repository, keep_commits, pinned, read_commits, repositories
from distft.run.folder import RunDir


def settle(run: RunDir, recipe: Recipe, ranks: Ranks, console: Console) -> Recipe:
    """The recipe with commits in place of revisions: as an earlier attempt has settled them, else as the hub says now.
    Collective.

    Raises:
        UserError: the hub has no such repository or revision, or cannot be asked.
    """
    if not any(repositories(recipe)):  # by their texts, so that all ranks agree
        return recipe
    return pinned(recipe, distributed.on_rank_0(ranks, "hub", lambda: settle_alone(run, recipe, console)))


def settle_alone(run: RunDir, recipe: Recipe, console: Console) -> dict[str, str]:
    """Commits by repository, which are written into the run folder where they are new."""
    kept = read_commits(run)
    found = {}
    for key, repository in repositories(recipe):
        if not is_on_hub(repository, recipe):
            continue
        name = str(repository)
        found[name] = kept.get(name) or hub.commit_of(repository)
        since = f", as this run has settled it ({run.hub.name})" if name in kept else ""
        console.say(f"{key}: {repository.name} at commit {found[name]}{since}")
    if not found.keys() <= kept.keys():
        keep_commits(run, kept | found)
    return found


def is_on_hub(repository: Repository, recipe: Recipe) -> bool:
    if repository.kind == "model":
        return base_model.is_on_hub(recipe.model)
    return places.is_on_hub(repository.name)
