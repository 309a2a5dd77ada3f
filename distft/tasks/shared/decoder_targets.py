"""Target tokens for decoders: languages, start and end tokens, maximum length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np

from distft.data.processors import digest_of_files
from distft.data.records import Column
from distft.errors import UserError
from distft.recipe.tasks import Seq2SeqLM
from distft.run.digest import of_parts
from distft.tasks.shared.padding import digest_of, pack_json

TARGET_COLUMNS: Mapping[str, str] = {"labels": "int32", "about": "uint8"}
UNANSWERED: Mapping[str, Column] = {"labels": np.zeros(0, np.int32), "about": np.zeros(0, np.uint8)}
TARGET_CUT = "with a target longer than task.longest_target had it cut"


def set_languages(tokenizer: Any, settings: Seq2SeqLM) -> None:
    """Sets the languages of a tokenizer that knows several (mBART, NLLB).

    Raises:
        UserError: it does not know them, or needs to be told.
    """
    several = hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")
    wanted = {"src_lang": settings.source_language, "tgt_lang": settings.target_language}
    if not several:
        if any(wanted.values()):
            raise UserError(
                "task.source_language, task.target_language: this model's tokenizer has no languages; leave them out"
            )
        return
    if tokenizer.tgt_lang is None and not all(wanted.values()):
        raise UserError("this tokenizer knows several languages: set task.source_language and task.target_language")
    try:
        for name, code in wanted.items():
            if code is not None:
                setattr(tokenizer, name, code)
        marks = tokenizer("")["input_ids"] + tokenizer(text_target="")["input_ids"]
    except KeyError as error:
        raise UserError(f"task.source_language, task.target_language: the tokenizer does not know {error}") from None
    if tokenizer.unk_token_id in marks:
        codes = " and ".join(filter(None, wanted.values()))
        raise UserError(f"task.source_language, task.target_language: the tokenizer does not know {codes}")


@dataclass(frozen=True)
class Targets:
    """What a decoder is to write for a text, of at most `longest` tokens.

    Args:
        given: tokens at the beginning of all targets that the decoder is given and does not write: Whisper has one.
    """

    tokenizer: Any
    longest: int
    given: int = 0

    def __call__(self, text: str, longest: int | None = None) -> list[int]:
        """The tokens of a target, with those that end it. Ends are kept where the text is cut."""
        room = {} if longest is None else {"truncation": True, "max_length": longest + self.given - (not self._ends)}
        ids: list[int] = self.tokenizer(text_target=text, verbose=False, **room)["input_ids"][self.given :]
        return ids if self._ends else [*ids, self.tokenizer.eos_token_id]

    @cached_property
    def _ends(self) -> bool:
        """Whether the tokenizer itself puts an end."""
        return self.tokenizer.eos_token_id in self.tokenizer(text_target="")["input_ids"]

    @cached_property
    def opening(self) -> list[int]:
        """What all targets begin with: the language in mBART-50 and NLLB, <s> in BART, nothing in T5."""
        pairs = zip(self(""), self("a"), strict=False)
        return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]

    def start(self, model: Any) -> int:
        """What the decoder is given first. mBART wraps the last token, the language, around to the front."""
        last = self("a")[-1]
        if last != self.tokenizer.eos_token_id:
            return last
        found = (getattr(c, "decoder_start_token_id", None) for c in (model.generation_config, model.config))
        return next((int(token) for token in found if token is not None), last)

    def columns(self, text: str) -> tuple[dict[str, Any], dict[str, int]]:
        """`TARGET_COLUMNS` of a text that is to be learned, and a note if it was cut."""
        ids = self(text)
        cut = len(ids) > self.longest
        labels = np.array(self(text, self.longest) if cut else ids, np.int32)
        return {"labels": labels, "about": pack_json(text)}, {TARGET_CUT: 1} if cut else {}

    @property
    def digest(self) -> str:
        tokenizer = self.tokenizer
        known = digest_of(tokenizer) if tokenizer.is_fast else digest_of_files(tokenizer)
        languages = [getattr(tokenizer, name, None) for name in ("src_lang", "tgt_lang")]
        return of_parts(known, languages, self.longest)
