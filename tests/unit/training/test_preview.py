"""What `distft data` makes of records, from the sample's own recipes."""

from __future__ import annotations

import io
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console as Terminal

from distft.data.records import Document
from distft.errors import UserError
from distft.model.context import RunContext
from distft.process.console import Console
from distft.recipe.load import load
from distft.run.folder import RunDir
from distft.training.preview import Piece, Preview, look, named, shown
from distft.training.preview_view import histogram, on_terminal, page, summary

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a tokenizer, made from good data."""
    folder = tmp_path_factory.mktemp("preview")
    return RunContext(RunDir(folder), load(ROOT / "configs" / "causal-lm.yaml", [])).base


@pytest.fixture
def preview(tmp_path: Path, base: Path) -> Callable[..., Preview]:
    def make(data: str, most: int = 1000, show: int = 2, **how: Any) -> Preview:
        (tmp_path / "data.jsonl").write_text(data)
        settings = [f"model={{path: {base}}}", f"data.train={tmp_path}/data.jsonl", "data.row_tokens=64"]
        settings += [f"data.{key}={value}" for key, value in how.items()]
        recipe = load(ROOT / "configs" / "causal-lm.yaml", settings)
        return look(recipe, None, "train", show, most, Console(first=False))

    return make


Make = Callable[..., Preview]
TURNS = '{"role": "user", "content": "<b>Hi</b>"}, {"role": "assistant", "content": "Hello & welcome."}'
CHAT = f'{{"messages": [{TURNS}]}}\n'


def test_what_the_assistant_says_is_learned_and_counted(preview: Make) -> None:
    found = preview(CHAT * 3, show=2)
    assert (found.read, found.complete, len(found.sizes), len(found.shown)) == (3, True, 3, 2)
    [side] = found.shown[0].sides
    learned = "".join(piece.text for piece in side.pieces if piece.learned)
    assert learned.startswith("Hello & welcome.")
    assert "<b>Hi</b>" in "".join(piece.text for piece in side.pieces if not piece.learned)
    assert found.learns_tokens
    assert 0 < found.targets < sum(found.sizes)
    assert found.rows is not None
    assert found.rows * 64 >= sum(found.sizes)


def test_records_that_cannot_be_used_are_named(preview: Make) -> None:
    found = preview(CHAT + "{broken\n" + '{"messages": 3}\n' + CHAT)
    assert (found.read, found.faulty, len(found.sizes)) == (4, 2, 2)
    assert [f":{line}" in fault for line, fault in zip((2, 3), found.faults, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({}, "2 records cannot be used, and a run would refuse the data:"),
        (
            {"bad_records": "skip"},
            "2 records cannot be used, more than data.bad_budget 0.01 allows, and a run would refuse the data:",
        ),
        (
            {"bad_records": "skip", "bad_budget": 0.5},
            "2 records cannot be used and are left out (data.bad_records):",
        ),
    ],
)
def test_bad_records_are_said_to_be_left_out_where_a_run_does_so(preview: Make, how: Any, said: str) -> None:
    found = preview(CHAT + "{broken\n" + '{"messages": 3}\n' + CHAT, **how)
    assert list(summary(found))[-1] == said
    assert found.refused is ("refuse" in said)
    assert not preview(CHAT, **how).refused


def test_only_the_first_are_read(preview: Make) -> None:
    found = preview(CHAT * 3, most=2)
    assert (found.read, found.complete) == (2, False)


def test_no_such_data() -> None:
    recipe = load(ROOT / "configs" / "causal-lm.yaml", ["data.eval=null"])
    with pytest.raises(UserError, match=r"^the recipe names no data\.eval$"):
        look(recipe, None, "eval", 1, 1, Console(first=False))


class Letters:
    """A tokenizer of one letter per token."""

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def document(**columns: Any) -> Document:
    return Document({name: np.asarray(value) for name, value in columns.items()}, 4)


def letters(text: str) -> np.ndarray[Any, Any]:
    return np.array([ord(letter) for letter in text], np.int32)


def test_a_text_is_cut_where_learning_begins_and_ends() -> None:
    one = document(tokens=letters("abcd"), targets=[False, True, True, False])
    [side] = shown("x:1", one, Letters(), ()).sides
    assert side.pieces == [Piece("a", False), Piece("bc", True), Piece("d", False)]


def test_a_pair_has_two_sides_and_a_target_is_all_learned() -> None:
    pair = document(
        chosen=letters("ab"), chosen_targets=[False, True], rejected=letters("ac"), rejected_targets=[False, True]
    )
    assert [side.name for side in shown("x:1", pair, Letters(), ()).sides] == ["chosen", "rejected"]
    source, target = shown("x:1", document(tokens=letters("ab"), labels=letters("cd")), Letters(), ()).sides
    assert (source.pieces, target.pieces) == ([Piece("ab", False)], [Piece("cd", True)])


@pytest.mark.parametrize(
    ("label", "labels", "text"),
    [
        (np.array([1], np.int32), ("no", "yes"), "yes"),
        (np.array([1.0, 0.0, 1.0], np.float32), ("a", "b", "c"), "a, c"),
        (np.array([0.0, 0.0], np.float32), ("a", "b"), "none"),
        (np.array([2.5], np.float32), (), "2.5"),
    ],
)
def test_labels_have_their_names(label: Any, labels: tuple[str, ...], text: str) -> None:
    assert named(label, labels) == text


def test_a_histogram_counts_everything_once() -> None:
    sizes = [3, 4, 4, 50, 99]
    bars = histogram(sizes)
    assert sum(number for _, number, _ in bars) == 5
    assert len(bars) <= 13
    assert bars[0][0].startswith("0 to") or bars[0][1] > 0
    assert max(share for *_, share in bars) == 1.0
    assert histogram([]) == []


def test_without_colours_what_is_learned_stands_between_brackets(preview: Make) -> None:
    out = io.StringIO()
    on_terminal(preview(CHAT), Terminal(file=out, width=200), ids=True)
    assert "⟦Hello & welcome." in out.getvalue()
    assert "1 records, 1 documents" in out.getvalue()


def test_a_page_shows_texts_and_nothing_of_theirs_is_markup(preview: Make) -> None:
    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.marked, self.tags, self._inside = "", set[str](), False

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.tags.add(tag)
            self._inside |= tag == "mark"

        def handle_endtag(self, tag: str) -> None:
            self._inside &= tag != "mark"

        def handle_data(self, data: str) -> None:
            self.marked += data if self._inside else ""

    reader = Reader()
    reader.feed(page(preview(CHAT), ids=True))
    assert "Hello & welcome." in reader.marked
    assert "b" not in reader.tags
    assert "script" not in reader.tags
