"""The tasks that a MiniLM is fine-tuned for: their data, and what both sides of the comparison are given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from commands import shared

BATCH, ROW_TOKENS, WARMUP = 32, 128, 0.1  # rows; tokens; share of the steps
Example = tuple[str, str] | tuple[list[str], list[str]]  # a text and its label, or words and their tags


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        settings: the section `task` of a recipe.
        data: how the files are read, in the section `data`.
        pieces: the training and the test data, as pieces of text that are an example each.
        scores: the first decides.
        words: each has a label.
    """

    settings: dict[str, Any]
    data: dict[str, Any]
    suffix: str
    pieces: Callable[[], tuple[list[str], list[str]]]
    scores: tuple[str, ...]
    words: bool = False
    separator: str = field(default="\t", kw_only=True)

    def write(self, folder: Path, name: str, rows: int | None) -> tuple[Path, Path, int]:
        """The files for training and test, of at most `rows` examples each. Returns them and the rows of the first.

        Fewer than there are come from all over the data: the labels are not mixed everywhere.
        """
        paths = folder / f"{name}-train{self.suffix}", folder / f"{name}-test{self.suffix}"
        train, test = (side[:: max(1, len(side) // (rows or len(side)))][:rows] for side in self.pieces())
        for path, side in zip(paths, (train, test), strict=True):
            path.write_text("".join(side), encoding="utf-8")
        return *paths, len(train)

    def read(self, path: Path) -> list[Example]:
        """What `write` wrote, by code of its own and not the product's."""
        text = path.read_text(encoding="utf-8")
        if not self.words:
            rows = [row.rpartition(self.separator) for row in text.removesuffix("\n").split("\n")]
            return [(sentence, label) for sentence, _, label in rows]
        found = [[line.split() for line in piece.split("\n")] for piece in text.strip().split("\n\n")]
        return [([row[0] for row in sentence], [row[-1] for row in sentence]) for sentence in found]


def sst2() -> tuple[list[str], list[str]]:
    """6,920 sentences, and the 872 that are called dev."""
    train, test = (lines(shared("sst2", name)) for name in ("train.tsv", "dev.tsv"))
    return train, test


def conll2003() -> tuple[list[str], list[str]]:
    train, test = (sentences(shared("conll2003", name)) for name in ("train.txt", "test.txt"))
    return train, test


def phrasebank() -> tuple[list[str], list[str]]:
    """A fifth for the test, chosen by the sentence alone: the data set has no split of its own."""
    train: list[str] = []
    test: list[str] = []
    for line in lines(shared("finance", "Sentences_AllAgree.txt")):
        sentence = line.rpartition("@")[0]
        chosen = hashlib.sha256(sentence.encode()).digest()[0] % 5 == 0
        (test if chosen else train).append(line)
    return train, test


def lines(path: Path) -> list[str]:
    return [f"{line}\n" for line in path.read_text(encoding="utf-8").split("\n") if line]


def sentences(path: Path) -> list[str]:
    found = path.read_text(encoding="utf-8").strip().split("\n\n")
    return [f"{sentence.strip()}\n\n" for sentence in found if sentence.strip() and "-DOCSTART-" not in sentence]


LABEL = {"type": "sequence-classification"}
TASKS = {
    "sst2": Task(LABEL, {"columns": ["text", "label"]}, ".tsv", sst2, ("accuracy", "macro_f1")),
    "conll2003": Task(
        {"type": "token-classification"},
        {"format": "conll"},
        ".txt",
        conll2003,
        ("f1", "precision", "recall"),
        words=True,
    ),
    "phrasebank": Task(
        LABEL,
        {"columns": ["text", "label"], "delimiter": "@"},
        ".txt",
        phrasebank,
        ("accuracy", "macro_f1"),
        separator="@",
    ),
}
