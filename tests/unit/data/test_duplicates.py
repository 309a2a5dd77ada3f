"""Equal documents are found, told, and left out where that is asked for: the first of them stays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distft.data import cutting, duplicates
from distft.data.corpus import CacheFolder, Corpus
from distft.data.cutting import cut_to_rows
from distft.data.duplicates import Twins, count_duplicates, find_twins, repeated, tell_duplicates, tell_twins
from distft.data.pieces import MarkedCut
from distft.data.records import Document, Encoded, Record, content_of
from distft.data.sources import Source
from distft.data.token_cache import build_cache


class Words:
    """Each word of a record is a document; all but its first letter are targets."""

    digest, columns = "words", {"tokens": "int32", "targets": "bool"}

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        words = record.fields["text"].split()
        return Encoded(
            [Document({"tokens": [*w.encode()], "targets": np.arange(len(w)) > 0}, len(w), len(w) - 1) for w in words]
        )


def build(folder: Path, texts: Sequence[str], name: str = "a.jsonl") -> tuple[Corpus, Path]:
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = build_cache(Source(str(folder / name)), Words(), str(folder / "cache"), lambda: None, lambda done: None)
    return Corpus.open(found), found


def cut_corpus(folder: Path, cut: MarkedCut | None, before: Sequence[Path] | None = None) -> Corpus:
    others = None if before is None else list(map(CacheFolder.open, before))
    return Corpus(cut_to_rows(CacheFolder.open(folder), folder, cut, others))


def words_of(corpus: Corpus) -> list[str]:
    return [bytes(corpus.document(i)["tokens"].tolist()).decode() for i in range(len(corpus))]


TEXTS = ["see sea", "", "sea see", "ee", "seesea see", "x ee x"]


@given(st.lists(st.integers(0, 12)))
def test_all_but_the_first_of_equal_ones_are_repeated(values: list[int]) -> None:
    contents = np.array(values, np.uint64) << np.uint64(60)
    assert repeated(contents).tolist() == [value in values[:at] for at, value in enumerate(values)]


def test_equal_documents_and_no_others_have_the_same_content() -> None:
    a, b, none = np.arange(3, dtype=np.int32), np.arange(4, dtype=np.int32), np.zeros(0, np.int32)
    different = [
        {"x": a, "y": b},
        {"x": b, "y": a},
        {"y": a, "x": b},
        {"x": a},
        {"x": none, "y": a},
        {"x": a, "y": none},
    ]
    assert len({content_of(columns) for columns in different}) == len(different)
    assert content_of({"x": a, "y": b}) == content_of({"x": a.copy(), "y": np.arange(8, dtype=np.int32)[:4]})


def test_duplicates_are_counted_and_told(tmp_path: Path) -> None:
    corpus, folder = build(tmp_path, TEXTS)
    assert count_duplicates(corpus, folder) == 5
    assert tell_duplicates("train", corpus, folder) == (
        "data.train: 5 of 10 documents are duplicates of others (data.duplicates)"
    )
    assert tell_duplicates("train", *build(tmp_path, ["a b", "c"])) is None


def test_held_out_documents_that_are_trained_on_are_told(tmp_path: Path) -> None:
    train, folder = build(tmp_path, TEXTS)
    held, _ = build(tmp_path, ["new", "old ee", "see ee"], "held.jsonl")
    assert find_twins(held, train, folder) == Twins(3, 2, 4)
    told = tell_twins("eval", held, train, folder)
    assert told is not None
    assert told.startswith("warning: data.eval: 3 of 5 documents are in the training data too")
    assert told.endswith(f"record 2 of {tmp_path}/held.jsonl is record 4 of {tmp_path}/a.jsonl")
    other, _ = build(tmp_path, ["new", "old"], "held.jsonl")
    assert tell_twins("eval", other, train, folder) is None


def test_several_sources_are_one(tmp_path: Path) -> None:
    _, first = build(tmp_path, TEXTS)
    _, second = build(tmp_path, ["saw sea", "saw"], "b.jsonl")
    both = Corpus.open(first, second)
    assert count_duplicates(both, first) == 7
    held, _ = build(tmp_path, ["saw"], "held.jsonl")
    assert find_twins(held, both, first) == Twins(1, 0, 10)
    assert both.place(9) == f"record 6 of {tmp_path}/a.jsonl"
    assert both.place(10) == f"record 1 of {tmp_path}/b.jsonl"
    assert both.place(12) == f"record 2 of {tmp_path}/b.jsonl"
    with pytest.raises(IndexError):
        both.place(13)
    dropped = cut_corpus(second, None, [first])
    assert dropped.place(0) == f"record 1 of {tmp_path}/b.jsonl"


@pytest.mark.parametrize("kept", [False, True])
def test_the_first_of_equal_documents_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    monkeypatch.setattr(cutting, "FEWEST", 1 if kept else 1000)
    corpus, folder = build(tmp_path, TEXTS)
    for _ in range(2):
        found = cut_corpus(folder, None, [])
        assert words_of(found) == ["see", "sea", "ee", "seesea", "x"]
        assert [found.document(i).record for i in range(5)] == [0, 0, 3, 4, 5]
        assert found.meta.notes == {"duplicates of others were dropped": 5}
        assert (found.meta.documents, found.meta.size, found.meta.targets) == (5, 15, 10)
        assert count_duplicates(found, folder) == 0
        monkeypatch.setattr(cutting, "find_pieces", lambda *a: pytest.fail("it was there")) if kept else None
    assert words_of(cut_corpus(folder, None)) == words_of(corpus)


def test_what_other_sources_had_before_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, other = build(tmp_path, TEXTS)
    _, folder = build(tmp_path, ["sea", "saw", "ee saw"], "b.jsonl")
    assert words_of(cut_corpus(folder, None, [other])) == ["saw"]
    monkeypatch.setattr(cutting, "FEWEST", 1)
    assert words_of(cut_corpus(folder, None, [other])) == ["saw"]
    assert words_of(cut_corpus(folder, None, [])) == ["sea", "saw", "ee"]
    assert words_of(cut_corpus(folder, None, [folder])) == []


def test_whole_documents_are_compared_and_pieces_are_left_out_with_them(tmp_path: Path) -> None:
    _, folder = build(tmp_path, ["abcd", "ab", "cd", "abcd", "x"])
    cut = cut_corpus(folder, MarkedCut(2, False))
    assert words_of(cut) == ["ab", "cd", "ab", "cd", "ab", "cd"]
    assert count_duplicates(cut, folder) == 1
    assert tell_duplicates("train", cut, folder) == (
        "data.train: 1 of 4 documents are duplicates of others (data.duplicates)"  # one has nothing to learn
    )
    found = cut_corpus(folder, MarkedCut(2, False), [])
    assert words_of(found) == ["ab", "cd", "ab", "cd"]
    assert [found.document(i).record for i in range(4)] == [0, 0, 1, 2]
    assert found.meta.notes == {
        "longer than a row were split": 2,
        "without anything to predict were dropped": 1,
        "duplicates of others were dropped": 1,
    }


def test_what_many_documents_were_found_to_be_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "FEWEST", 3)
    train, folder = build(tmp_path, TEXTS)
    held, _ = build(tmp_path, ["ee"], "held.jsonl")
    found = count_duplicates(train, folder), find_twins(held, train, folder)
    kept = sorted(folder.parent.glob("*.twins-*"))
    assert len(kept) == 2
    with monkeypatch.context() as patch:
        patch.setattr(np, "sort", lambda *a, **k: pytest.fail("computed again"))
        assert (count_duplicates(train, folder), find_twins(held, train, folder)) == found
    for path in kept:
        path.write_text(path.read_text().replace("1", "7"))
    assert (count_duplicates(train, folder), find_twins(held, train, folder)) == found
