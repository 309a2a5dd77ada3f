"""The commits of the hub that a run reads data and base model from, kept from its first attempt on (hub.json)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.run.files import write_atomically
from distft.run.folder import RunDir

MAIN = "main"


@dataclass(frozen=True)
class Repository:
    """A repository of the hub as a recipe names it. `revision`: a branch, a tag or a commit; None: the main branch."""

    kind: Literal["dataset", "model"]
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}s/{self.name}@{self.revision or MAIN}"


def may_be_on_hub(place: object) -> bool:
    """Whether a place of a recipe may be a hub id, by its text alone: what is local mostly has an absolute path."""
    return isinstance(place, str) and not os.path.isabs(place) and not place.startswith((".", "~"))


def repositories(recipe: Recipe) -> Iterator[tuple[str, Repository]]:
    """(the key of the recipe, what it names) for the base model and all data that may be on the hub, each once."""
    path = recipe.model.path
    if path is not None and may_be_on_hub(path):
        yield "model.path", Repository("model", path, recipe.model.revision)
    seen = set()
    for part in recipe.parts():
        for which, spec in (("train", part.train), ("eval", part.eval)):
            if isinstance(spec, str) and may_be_on_hub(spec) and spec not in seen:
                seen.add(spec)
                yield ".".join((*part.keys, which)), Repository("dataset", spec, part.revision_of(spec))


def read_commits(run: RunDir) -> dict[str, str]:
    """Commits by repository, as its text; empty if the run has settled none.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        found = json.loads(run.hub.read_text(encoding="utf-8"))
        if not (isinstance(found, dict) and all(isinstance(commit, str) for commit in found.values())):
            raise ValueError("not what was written there")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{run.hub} cannot be read ({error}); restore it from a copy, or remove it and set data.revision and "
            "model.revision to the commits that the run began with"
        ) from None
    return found


def keep_commits(run: RunDir, commits: Mapping[str, str]) -> None:
    write_atomically(run.hub, json.dumps(dict(commits), indent=2) + "\n")


def pinned(recipe: Recipe, commits: Mapping[str, str]) -> Recipe:
    """The recipe with these commits in place of the revisions that they are known for."""
    data: dict[str, str] = {}
    for _, found in repositories(recipe):
        commit = commits.get(str(found))
        if found.kind == "model" and commit is not None:
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"revision": commit})})
        elif found.kind == "dataset" and (wanted := commit or found.revision) is not None:
            data[found.name] = wanted
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"revision": data})}) if data else recipe


def settled(run: RunDir, recipe: Recipe) -> Recipe:
    """The recipe as this run has settled it; as it is where nothing is on the hub, or not settled yet."""
    return pinned(recipe, read_commits(run))
