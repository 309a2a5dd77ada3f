"""The commits of the hub that a run reads data and base model from, kept from its first attempt on (hub.json)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from distft.errors import UserError
from distft.recipe.load import load_resolved
from distft.recipe.schema import Data, Recipe
from distft.recipe.sources import DataSource, is_pattern, listed
from distft.recipe.tasks import MultiTask, SubTask
from distft.run.files import write_atomically
from distft.run.folder import RunDir

MAIN = "main"
HasSources = TypeVar("HasSources", Data, SubTask)


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
    local = (".", "~")
    return isinstance(place, str) and not (os.path.isabs(place) or place.startswith(local) or is_pattern(place))


def repositories(recipe: Recipe) -> Iterator[tuple[str, Repository]]:
    """(the key of the recipe, what it names) for the base model and all data that may be on the hub, each once."""
    path = recipe.model.path
    if path is not None and may_be_on_hub(path):
        yield "model.path", Repository("model", path, recipe.model.revision)
    seen = set()
    for part in recipe.parts():
        for which, sources in (("train", part.train), ("eval", part.eval)):
            for number, source in enumerate(sources):
                if (found := repository_of(source, None)) is not None and found not in seen:
                    seen.add(found)
                    yield ".".join((*part.keys, which, *([str(number)] if len(sources) > 1 else []))), found


def repository_of(source: DataSource, revision: str | None) -> Repository | None:
    """What a source may name on the hub. `revision`: of the section around it."""
    if not may_be_on_hub(source.path):
        return None
    return Repository("dataset", str(source.path), source.revision or revision)


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
    model, task = recipe.model, recipe.task
    if (commit := commits.get(str(Repository("model", model.path or "", model.revision)))) is not None:
        recipe = recipe.model_copy(update={"model": model.model_copy(update={"revision": commit})})
    around = recipe.data.revision
    if isinstance(task, MultiTask):
        tasks = {name: _pinned(part, around, commits) for name, part in task.tasks.items()}
        return recipe.model_copy(update={"task": task.model_copy(update={"tasks": tasks})})
    return recipe.model_copy(update={"data": _pinned(recipe.data, around, commits)})


def _pinned(section: HasSources, revision: str | None, commits: Mapping[str, str]) -> HasSources:
    """A section with `train` and `eval`."""
    found: dict[str, list[DataSource]] = {}
    for which in ("train", "eval"):
        sources = listed(getattr(section, which))
        known = [commits.get(str(repository_of(source, revision))) for source in sources]
        if any(known):
            pairs = zip(sources, known, strict=True)
            found[which] = [one.model_copy(update={"revision": commit or one.revision}) for one, commit in pairs]
    return section.model_copy(update=found) if found else section


def settled(run: RunDir, recipe: Recipe) -> Recipe:
    """The recipe as this run has settled it; as it is where nothing is on the hub, or not settled yet."""
    return pinned(recipe, read_commits(run))


def recipe_of(run: RunDir) -> Recipe:
    """The recipe of a run as it has settled it. Raises UserError where a file of the run is damaged."""
    return settled(run, load_resolved(run.config))
