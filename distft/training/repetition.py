"""What a run says of documents that its data have more than once: in training, or in training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from distft.data.corpus import Corpus
from distft.data.duplicates import tell_duplicates, tell_twins
from distft.recipe.tasks import TaskPart
from distft.training.datasets import beside
from distft.training.filling import name_of


def told(part: TaskPart, train: Corpus, held: Corpus | None, folders: Sequence[Path]) -> Iterator[str]:
    """Sentences. `folders`: of the training data in the token cache."""
    place = beside(folders)
    if (text := tell_duplicates(name_of(part, "train"), train, place)) is not None:
        yield text
    if held is not None and (text := tell_twins(name_of(part, "eval"), held, train, place)) is not None:
        yield text
