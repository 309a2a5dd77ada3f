"""Tokens of texts and where each begins, from the backend of a fast tokenizer: its wrapper costs short texts time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from distft.data.byte_level import Tiles

_SHORT = 64  # characters; what templates write between messages comes again and again


@dataclass(frozen=True, eq=False)
class Tokens:
    """Of a text, without special tokens: ids int32 [n], and the character each begins at, int64 [n], rising."""

    ids: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int64]

    def first_from(self, character: int) -> int:
        """The first token that begins there or behind."""
        return int(self.begins.searchsorted(character))

    def replaced(self, begin: int, end: int | None, *by: Tokens) -> Tokens:
        """With others in place of tokens [begin, end)."""
        rest = [] if end is None else [Tokens(self.ids[end:], self.begins[end:])]
        parts = [Tokens(self.ids[:begin], self.begins[:begin]), *by, *rest]
        return Tokens(np.concatenate([one.ids for one in parts]), np.concatenate([one.begins for one in parts]))

    def shifted(self, characters: int) -> Tokens:
        return Tokens(self.ids, self.begins + characters) if characters else self


@dataclass(frozen=True, eq=False)
class TokenBegins:
    """Of one fast tokenizer. Texts are without halves of surrogate pairs."""

    tokenizer: Any

    def one(self, text: str) -> Tokens:
        """What the call of the tokenizer gives."""
        if not _hands_on(self.tokenizer.__class__):
            out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return _tokens(out["input_ids"], out["offset_mapping"])
        found = self._backend().encode(text, add_special_tokens=False)
        return _tokens(found.ids, found.offsets)

    def many(self, texts: Sequence[str]) -> list[Tokens]:
        """The same for several texts, in less time: offsets are not asked for where lengths of tokens tell them."""
        if not _hands_on(self.tokenizer.__class__):
            return [self.one(text) for text in texts]
        backend, tiles = self._backend(), self._tiles
        if tiles is None:
            return [
                _tokens(found.ids, found.offsets) for found in backend.encode_batch(texts, add_special_tokens=False)
            ]
        made = []
        for text, found in zip(texts, backend.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            ids = np.fromiter(found.ids, np.int32, len(found))
            begins = tiles.begins(text, ids)
            made.append(self.one(text) if begins is None else Tokens(ids, begins))
        return made

    def at(self, text: str, tokens: Tokens, starts: Sequence[int]) -> tuple[Tokens, list[int]]:
        """Tokens of `text`, and for each of `starts` the first token from there on.

        The text is encoded in one go (`tokens`), as models were trained on it. Where that would make the tokens before
        a start differ from those of the prompt alone ("\\n" + "\\n..." merged), it is cut there, so that training and
        inference see the same. No token reaches over an added token, and with some tokenizers none over the end of a
        line: what stands before it need not be looked at.
        """
        firsts: list[int] = []
        last = done = cut = cut_at = 0  # the last start and the last cut: characters and tokens
        hard = self._added_in(tokens)
        for start in starts:
            near = tokens.first_from(start)
            place = int(hard.searchsorted(near)) - 1  # the last added token before
            known = place >= 0 and hard[place] >= done
            at, begin = (int(hard[place]), int(tokens.begins[hard[place]])) if known else (done, last)
            if (line := self._line_between(text, begin, start)) is not None:
                known, at, begin = True, tokens.first_from(line), line
            alone = self._alone(text[begin:start])
            if not known and not _continues(tokens, at, alone):  # it treats the beginning of a text in its own way
                at, begin = cut_at, cut
                alone = self._alone(text[cut:start])
            done = at + len(alone.ids)
            if not _continues(tokens, at, alone):
                behind = hard[hard.searchsorted(near) :]
                end = next((int(i) for i in behind if tokens.begins[i] >= start), None)
                rest = self.one(text[start : None if end is None else int(tokens.begins[end])])
                tokens = tokens.replaced(at, end, alone.shifted(begin), rest.shifted(start))
                cut, cut_at, hard = start, done, self._added_in(tokens)
            firsts.append(done)
            last = start
        return tokens, firsts

    def _line_between(self, text: str, begin: int, end: int) -> int | None:
        """Where the last line begins between two places that are far from each other, if no token reaches over that."""
        if end - begin <= _SHORT or self._tiles is None or not self._tiles.cuts_lines:
            return None
        at = text.rfind("\n", begin, end - 1)
        while at >= 0 and not "!" <= text[at + 1] <= "~":
            at = text.rfind("\n", begin, at)
        return at + 1 if at >= 0 else None

    def _alone(self, text: str) -> Tokens:
        return self._kept(text) if len(text) <= _SHORT else self.one(text)

    @cached_property
    def _kept(self) -> Callable[[str], Tokens]:
        return lru_cache(maxsize=4096)(self.one)

    def _added_in(self, tokens: Tokens) -> npt.NDArray[np.int64]:
        """Which are added tokens: their numbers."""
        return np.flatnonzero(self._is_added[np.minimum(tokens.ids, len(self._is_added) - 1)])

    @cached_property
    def _is_added(self) -> npt.NDArray[np.bool_]:
        """By id, bool; the last one is that of any larger id, too."""
        added = list(self.tokenizer.get_added_vocab().values())
        found = np.zeros(2 + max(added, default=0), np.bool_)
        found[added] = True
        return found

    @cached_property
    def _tiles(self) -> Tiles | None:
        return Tiles.of(self.tokenizer.backend_tokenizer)

    def _backend(self) -> Any:
        """Without the state that other calls may leave behind, or the tokenizer's file."""
        backend = self.tokenizer.backend_tokenizer
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens != self.tokenizer.split_special_tokens:
            backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return backend


def _tokens(ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Tokens:
    return Tokens(np.array(ids, np.int32), np.array([begin for begin, _ in offsets], np.int64))


def _continues(tokens: Tokens, at: int, others: Tokens) -> bool:
    """Whether the tokens from `at` on begin as others do."""
    return bool(np.array_equal(tokens.ids[at : at + len(others.ids)], others.ids))


@cache
def _hands_on(kind: Any) -> bool:
    """Whether tokenizers of this class give texts to the backend as they are. Some cut or change them first."""
    from transformers import PreTrainedTokenizerFast

    return all(getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in ("__call__", "_encode_plus"))
