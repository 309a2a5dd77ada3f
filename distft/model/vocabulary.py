"""The vocabulary of a model: which tokens it has, and whether data have others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distft.data.records import Document
from distft.errors import UserError
from distft.tasks.shared.position_limits import check_source, source_positions
from distft.tasks.shared.tokenizer_family import TokenizerFamily


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model.

    Attributes:
        place: of the tokenizer.
        known: embeddings; None: there is one for each token that the tokenizer can give.
        largest: of the tokens that are put around texts.
    """

    place: str
    known: int | None = None
    largest: int = 0

    @classmethod
    def of(cls, processor: Any, model: Any, family: TokenizerFamily) -> Vocabulary:
        tokenizer = getattr(processor, "tokenizer", processor)
        if family.spells:
            return cls(str(getattr(tokenizer, "name_or_path", "")))
        embeddings = model.get_input_embeddings()
        known = getattr(getattr(embeddings, "base_layer", embeddings), "num_embeddings", None)
        if known is None or len(tokenizer) <= known:
            return cls(tokenizer.name_or_path)
        # there may be special tokens that no text has (BART's mask, Gemma's images)
        names = ("pad", "bos", "eos", "cls", "sep", "unk", *(["mask"] if family.masks else []))
        around = {getattr(tokenizer, f"{name}_token_id") for name in names} - {None}
        return cls(tokenizer.name_or_path, known, max(around, default=0))

    def check(self, token: int = 0) -> None:
        """Raises UserError if the model does not have this token, or one of those around texts."""
        largest = max(token, self.largest)
        if self.known is not None and largest >= self.known:
            raise UserError(
                f"the tokenizer in {self.place} has token {largest:,}, but the model has only "
                f"{self.known:,} embeddings; use the model's own tokenizer, or resize the embeddings"
            )


@dataclass(frozen=True)
class Limits:
    """What a model takes. `longest`: tokens of a source; None: any number."""

    vocabulary: Vocabulary
    longest: int | None

    @classmethod
    def of(cls, processor: Any, model: Any, family: TokenizerFamily) -> Limits:
        longest = source_positions(model) if family.limit == "source" else None
        return cls(Vocabulary.of(processor, model, family), longest)

    def check(self, documents: Sequence[Document]) -> None:
        """Raises UserError if the model does not take one of these."""
        for document in documents:
            check_source(self.longest, document.size)
            if self.vocabulary.known is not None:
                tokens = [column for column in document.columns.values() if column.dtype == np.int32]
                self.vocabulary.check(max((int(column.max(initial=0)) for column in tokens), default=0))
