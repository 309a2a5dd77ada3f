"""From records with tagged words to tokenized documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from distft.data.class_names import place_of
from distft.data.records import Column, Document, Encoded, Record
from distft.errors import UserError
from distft.metrics.scores import scheme_of
from distft.run.digest import of_parts
from distft.tasks.shared.padding import COLUMNS, DROPPED, SPLIT, TRUNCATED, digest_of, pack_json
from distft.tasks.token_classification.crf import allowed_transitions
from distft.tasks.token_classification.sentences import TAGS, UNACCEPTED, Sentence, TextWords, read

WITHOUT_WORDS = "without any word were dropped"


@dataclass(frozen=True)
class TaggingEncoder:
    """Words as tokens; the tag of a word is that of its first token.

    Args:
        crf: tags that the scheme of the labels does not allow are refused: with a CRF they have no probability.
        overlong: what becomes of sentences longer than a row: they are split between words (but a word that has more
            tokens than a row is cut), truncated, or dropped; of those to be predicted none is dropped.
        meanings: of the labels, by their scheme; None: their own.
        text_words: how a text becomes words. It is in no digest: spans are refused where it is not `signs`.
    """

    tokenizer: Any
    crf: bool
    labels: tuple[str, ...]
    fields: Mapping[str, str]
    row_tokens: int
    overlong: str
    meanings: tuple[str, ...] | None = None
    text_words: TextWords = "signs"

    # A value a word: `starts`, index of its first token (-1: the tokenizer makes none of it, or it is beyond the row),
    # and `tags` (none: not known). `edges`: the first word begins the sentence; the last one ends it and has tokens.
    # `words`: JSON, a list of texts, or of `Word`s in a text.
    columns = {**COLUMNS, "starts": "int32", TAGS: "int32", "edges": "bool", "words": "uint8"}  # noqa: RUF012

    @cached_property
    def digest(self) -> str:
        parts: list[Any] = [self.crf, self.labels, sorted(self.fields.items()), self.row_tokens, self.overlong]
        if self.crf and self.meanings not in (None, self.labels):  # they decide what is refused
            parts.append(self.meanings)
        return of_parts("token-classification", digest_of(self.tokenizer), *parts)

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        sentence = read(record, self.fields, answered, self.text_words)
        if sentence.left_out:
            return Encoded([], {UNACCEPTED: 1})
        tags = self._tags(record, sentence) if answered else np.zeros(0, np.int32)
        if answered and not sentence.words:
            return Encoded([], {WITHOUT_WORDS: 1})
        found = self.tokenizer(
            self._spelled(sentence), is_split_into_words=True, return_token_type_ids=True, verbose=False
        )
        long = len(found["input_ids"]) > self.row_tokens
        if long and self.overlong == "drop" and answered:
            return Encoded([], {DROPPED: 1})
        documents = self._documents(sentence.words, tags, found, long and self.overlong != "truncate")
        return Encoded(
            documents, {**sentence.notes, **({SPLIT if len(documents) > 1 else TRUNCATED: 1} if long else {})}
        )

    def _spelled(self, sentence: Sentence) -> list[str]:
        """Words as they are given to the tokenizer, with a blank before where they have one in a text."""
        if not self._spaced:
            return sentence.texts
        return [
            f" {text}" if isinstance(word, str) or word[1] or not index else text
            for index, (word, text) in enumerate(zip(sentence.words, sentence.texts, strict=True))
        ]

    def _tags(self, record: Record, sentence: Sentence) -> Column:
        names, words = sentence.tags or [], len(sentence.words)
        if sentence.from_spans and (scheme := scheme_of(self.meanings or self.labels)) not in ("IOB", None):
            raise UserError(f"{record.where} has spans, which are tagged B- and I-, but this run's tags are {scheme}")
        if len(names) != words:
            raise UserError(f"{record.where} has {words} words but {len(names)} tags; give each word one tag")
        places = [place_of(name, self._places) for name in names]
        for name, place in zip(names, places, strict=True):
            if place is None:
                raise UserError(
                    f"{record.where}: tag {name!r} is not one of this run's: {', '.join(self.labels[:20])}; "
                    "correct it, or name all tags in task.labels"
                )
        tags = np.array(places, np.int32)
        if self.crf and words and (flaw := self._flaw(tags)):
            raise UserError(f"{record.where}: {flaw} in the labels' scheme; convert to IOB2, or set task.crf to false")
        return tags

    @cached_property
    def _places(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}

    def _flaw(self, tags: Column) -> str | None:
        start, end, transitions = self._allowed
        wrong = np.flatnonzero(~transitions[tags[:-1], tags[1:]])
        if not start[tags[0]]:
            return f"tag {self.labels[tags[0]]!r} cannot begin a sentence"
        if len(wrong):
            before, after = (self.labels[tag] for tag in tags[wrong[0] : wrong[0] + 2])
            return f"tag {after!r} of word {wrong[0] + 2} cannot follow {before!r}"
        return None if end[tags[-1]] else f"tag {self.labels[tags[-1]]!r} cannot end a sentence"

    @cached_property
    def _allowed(self) -> tuple[Column, Column, Column]:
        allowed = allowed_transitions(self.meanings or self.labels)
        return allowed.start.numpy(), allowed.end.numpy(), allowed.transitions.numpy()

    @cached_property
    def _spaced(self) -> bool:
        """Whether a word within a text has other tokens than alone, as in GPT-2's and RoBERTa's byte-level BPE."""

        def ids(text: str | list[str]) -> Any:
            split = not isinstance(text, str)
            return self.tokenizer(text, is_split_into_words=split, add_special_tokens=False)["input_ids"]

        whole = ids("a a")
        return bool(whole != ids(["a", "a"]) and whole == ids(["a", " a"]))

    def _documents(self, words: Sequence[Any], tags: Column, found: Any, split: bool) -> list[Document]:
        """One of all words, as far as they fit into a row, or as many as it takes."""
        ids, types = np.array(found["input_ids"], np.int32), np.array(found["token_type_ids"], np.uint8)
        owners = np.array([-1 if word is None else word for word in found.word_ids()], np.int64)
        inner = np.flatnonzero(owners >= 0)  # what is not special; before and after it stand special tokens
        before, after = np.split(np.flatnonzero(owners < 0), [inner[0] if len(inner) else len(ids)])
        sizes = np.bincount(owners[inner], minlength=len(words))
        room = self.row_tokens - len(before) - len(after)
        documents = []
        for begin, end in split_words(sizes.tolist(), room) if split else [(0, len(words))]:
            own = sizes[begin:end]
            offsets = np.cumsum(own) - own
            starts = np.where((own > 0) & (offsets < room), len(before) + offsets, -1)
            first = sizes[:begin].sum()
            kept = np.concatenate([before, inner[first : first + min(room, own.sum())], after])
            columns = {  # there is always a token, as a row is never empty
                "tokens": ids[kept] if len(kept) else np.array([self.tokenizer.pad_token_id or 0], np.int32),
                "types": types[kept] if len(kept) else np.zeros(1, np.uint8),
                "starts": starts.astype(np.int32),
                TAGS: tags[begin:end],
                "edges": np.array([begin == 0, end == len(words) and bool(np.all(starts[-1:] >= 0))]),
                "words": pack_json(words[begin:end]),
            }
            documents.append(Document(columns, len(columns["tokens"]), int((starts >= 0).sum())))
        return documents


def split_words(sizes: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Runs of words, (begin, end), that have at most `room` tokens together, or of words with tokens just one.

    Args:
        sizes: tokens of each word. Words without any go with those before them.
    """
    cuts, filled = [0], 0
    for index, size in enumerate(sizes):
        if size and filled and filled + size > room:
            cuts.append(index)
            filled = 0
        filled += size
    return list(pairwise([*cuts, len(sizes)]))
