"""Documents cut by an index are those that an encoder would have cut, and another length of a row encodes nothing."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distft.data import corpus as corpus_module
from distft.data import cutting
from distft.data.corpus import CacheFolder, Corpus
from distft.data.cutting import cut_to_rows
from distft.data.pieces import Cut, MarkedCut
from distft.data.records import Cuts, Document, Encoded, Encoder, Record
from distft.data.sources import Source
from distft.data.templates import REJECTED, Marked
from distft.data.token_cache import build_cache, content_of
from distft.errors import UserError
from distft.tasks.causal_lm import split_to_rows


@dataclass(frozen=True)
class Marks:
    """Records are the targets of a document, as 0 and 1; "rejected" ones are left out."""

    row: int | None
    drop: bool = False

    columns = {"tokens": "int32", "targets": "bool"}  # noqa: RUF012

    @property
    def digest(self) -> str:
        return repr(self)

    @property
    def uncut(self) -> Marks:
        return Marks(None)

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        text = record.fields["text"]
        notes = {REJECTED: 1} if text == "rejected" else {"with a one": 1} if "1" in text else {}
        targets = np.array([letter == "1" for letter in text.replace("rejected", "")], bool)
        tokens = np.arange(len(targets), dtype=np.int32) * 7 + len(text)
        if self.row is not None:
            return split_to_rows(Marked(tokens, targets, notes), self.row, self.drop)
        whole = Document({"tokens": tokens, "targets": targets}, len(targets), int(targets.sum()))
        return Encoded([] if REJECTED in notes else [whole], notes)


def cut_corpus(folder: Path, cut: Cut) -> Corpus:
    return Corpus(cut_to_rows(CacheFolder.open(folder), folder, cut))


def texts_of(kind: str, number: int = 100) -> list[str]:
    """Of all lengths: all learned, some, or nothing; the first token never is."""
    draw = random.Random(kind)
    share = {"all": 1.0, "some": 0.1, "few": 0.01, "none": 0.0}[kind]
    lengths = [draw.randrange(90) for _ in range(number)]
    texts = ["".join("01"[i > 0 and draw.random() < share] for i in range(length)) for length in lengths]
    return ["rejected" if draw.random() < 0.1 else text for text in texts]


def written(folder: Path, texts: Sequence[str]) -> Source:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Source(str(folder / "a.jsonl"))


def build(source: Source, encoder: Encoder) -> Path:
    return build_cache(source, encoder, str(Path(source.name).parent), lambda: None, lambda done: None)


def all_of(corpus: Corpus) -> list[tuple[Any, ...]]:
    found = [corpus.document(i) for i in range(len(corpus))]
    assert [d.size for d in found] == corpus.sizes.tolist()
    assert [d.targets for d in found] == corpus.targets.tolist()
    return [
        (d.size, d.targets, d.record, {name: (str(v.dtype), v.tolist()) for name, v in d.columns.items()})
        for d in found
    ]


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", ["all", "some", "few"])
def test_the_pieces_are_those_that_an_encoder_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, kept: bool
) -> None:
    monkeypatch.setattr(cutting, "FEWEST", 1 if kept else 1000)
    if kept:  # targets are counted in many blocks
        monkeypatch.setattr(corpus_module, "_FAR", 3)
        monkeypatch.setattr(corpus_module, "_BLOCK", 32)
    source = written(tmp_path, texts_of(kind))
    folder = build(source, Marks(16).uncut)
    for row in (1, 7, 16, 40, 90):
        for drop in (False, True):
            try:
                expected = Corpus.open(build(source, Marks(row, drop)))
            except UserError as error:
                with pytest.raises(UserError) as caught:
                    cut_corpus(folder, MarkedCut(row, drop)).meta.check_usable()
                assert sorted(re.split("; |: ", str(caught.value))) == sorted(re.split("; |: ", str(error)))  # noqa: PT017
                continue
            found = cut_corpus(folder, MarkedCut(row, drop))
            assert all_of(found) == all_of(expected)
            assert found.meta == expected.meta
            assert found.sizes.dtype == np.int32
            assert found.largest_token() == Corpus.open(folder).largest_token()
            with pytest.raises(IndexError):
                found.document(len(found))


def test_nothing_is_encoded_for_another_length_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path, texts_of("some"))
    assert isinstance(Marks(16), Cuts)
    first = build(source, Marks(16).uncut)
    monkeypatch.setattr(Marks, "encode", lambda *args: pytest.fail("encoded again"))
    assert build(source, Marks(40, drop=True).uncut) == first
    contents = {content_of(source, Marks(row), str(tmp_path), lambda: None) for row in (16, 40)}
    assert len(contents) == 2  # a run knows its rows


def test_documents_that_fit_are_the_corpus_itself(tmp_path: Path) -> None:
    source = written(tmp_path, ["0101", "011"])
    folder = build(source, Marks(None))
    whole = CacheFolder.open(folder)
    assert cut_to_rows(whole, folder, MarkedCut(4, False)) is whole


@pytest.mark.parametrize("drop", [False, True])
def test_nothing_to_learn_is_told(tmp_path: Path, drop: bool) -> None:
    source = written(tmp_path, ["0000", "00000000"])
    folder = build(source, Marks(None))
    found = cut_corpus(folder, MarkedCut(4, drop))
    long, empty = ("dropped", 1) if drop else ("split", 3)
    with pytest.raises(UserError, match=f"none of the 2 records .*: 1 longer than a row were {long}; {empty} without"):
        found.meta.check_usable()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cutting, "FEWEST", 1)
    return build(written(tmp_path, texts_of("some")), Marks(None))


def test_the_index_is_found_once_for_each_way_to_cut(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts: list[Cut] = [MarkedCut(16, False), MarkedCut(17, False), MarkedCut(16, True)]
    first = [all_of(cut_corpus(kept, cut)) for cut in cuts]
    assert len(list(kept.parent.glob("*.pieces-*"))) == 3
    monkeypatch.setattr(cutting, "find_pieces", lambda *args: pytest.fail("it was there"))
    assert [all_of(cut_corpus(kept, cut)) for cut in cuts] == first


def test_a_damaged_index_is_made_anew(kept: Path) -> None:
    whole = cut_corpus(kept, MarkedCut(16, False))
    expected, notes = all_of(whole), whole.meta.notes
    [path] = kept.parent.glob("*.pieces-*")
    content, draw = path.read_bytes(), random.Random(0)
    places = [*range(24), *(draw.randrange(len(content)) for _ in range(30)), len(content) - 1]
    damaged = [content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :] for place in places]
    for damage in [*damaged, b"", content[:7], content[:24], content[:-1], content[:-20], content + bytes(20)]:
        path.unlink()  # what is mapped stays as it is
        path.write_bytes(damage)
        again = cut_corpus(kept, MarkedCut(16, False))
        assert (all_of(again), again.meta.notes) == (expected, notes)
        assert path.read_bytes() == content


def test_where_no_index_can_be_kept_each_finds_its_own(kept: Path) -> None:
    elsewhere = kept / "nowhere" / "tokens"
    found = Corpus(cut_to_rows(CacheFolder.open(kept), elsewhere, MarkedCut(16, False)))
    assert all_of(found) == all_of(cut_corpus(kept, MarkedCut(16, False)))


def test_a_corpus_of_pieces_says_what_it_is_about(kept: Path) -> None:
    found, corpus = cut_corpus(kept, MarkedCut(16, False)), Corpus.open(kept)
    assert replace(found.meta, documents=0, size=0, targets=0, notes={}) == replace(
        corpus.meta, documents=0, size=0, targets=0, notes={}
    )
    assert (found.meta.documents, found.meta.size) == (len(found), int(found.sizes.sum()))
