"""Byte-level tokenizers: where tokens of a text begin, by their lengths alone: they are pieces of its bytes."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers.pre_tokenizers import ByteLevel


@dataclass(frozen=True, eq=False)
class Tiles:
    """Lengths of the tokens of a byte-level BPE (Wang et al. 2020; GPT-2).

    What such a tokenizer does to a text can leave bytes out, but neither add nor exchange any. So tokens that are as
    long as the text, all together, stand one behind the other in it, and each begins where those before it end.

    Attributes:
        sizes: bytes of each token, int64 [largest id + 1].
        composes: the tokenizer brings a text into the normal form NFC first.
        cuts_lines: no token holds the end of a line and a visible character behind it, and tokens before such a place
            do not depend on what comes behind it.
    """

    sizes: npt.NDArray[np.int64]
    composes: bool
    cuts_lines: bool

    @classmethod
    def of(cls, backend: Any) -> Tiles | None:
        """None: it is another tokenizer, or one that is not known to be like this."""
        parts = json.loads(backend.to_str())
        normalizers = _types(parts["normalizer"], "normalizers")
        if not _is_plain_bpe(parts) or not set(normalizers) <= {"NFC"}:
            return None
        vocabulary = backend.get_vocab(with_added_tokens=False)
        tokens = backend.get_added_tokens_decoder()
        added = {id: token.content for id, token in tokens.items()}
        if not vocabulary.keys() >= set(ByteLevel.alphabet()):  # some byte is an unknown token, or left out
            return None
        if normalizers and not all(unicodedata.is_normalized("NFC", text) for text in added.values()):
            return None
        sizes = np.zeros(1 + max([*vocabulary.values(), *added]), np.int64)
        sizes[list(vocabulary.values())] = [len(token) for token in vocabulary]  # a character stands for a byte
        sizes[list(added)] = [len(text.encode()) for text in added.values()]
        # The expression of GPT-2: white space but a blank is a piece of its own, and looks one character ahead.
        pieces = _parts(parts["pre_tokenizer"], "pretokenizers")
        over = any(token.lstrip or "\n" in token.content for token in tokens.values())
        return cls(sizes, bool(normalizers), len(pieces) == 1 and pieces[0]["use_regex"] and not over)

    def begins(self, text: str, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64] | None:
        """The character of `text` that each of its tokens begins at, or within, int64 [n]; None: this cannot tell."""
        sizes = self.sizes[ids]
        ends = sizes.cumsum()
        content = text.encode()
        if ends[-1:].sum() != len(content) or (self.composes and not unicodedata.is_normalized("NFC", text)):
            return None
        begins: npt.NDArray[np.int64] = ends - sizes
        if len(content) != len(text):
            is_first = (np.frombuffer(content, np.uint8) & 0xC0) != 0x80  # byte of a character
            begins = (np.cumsum(is_first) - 1)[begins]
        return begins


def _is_plain_bpe(parts: Mapping[str, Any]) -> bool:
    """Whether a tokenizer, as its file describes it, cuts texts into pieces and bytes, and joins these by BPE."""
    model = parts["model"]
    if model["type"] != "BPE" or any(model.get(name) for name in _OTHER_MODELS):
        return False
    pieces = _parts(parts["pre_tokenizer"], "pretokenizers")
    if not pieces or pieces[-1]["type"] != "ByteLevel" or pieces[-1]["add_prefix_space"]:
        return False
    if any(one["type"] not in ("Split", "Digits") for one in pieces[:-1]):
        return False
    after = _parts(parts["post_processor"], "processors")
    return all(
        one["type"] == "TemplateProcessing" or (one["type"] == "ByteLevel" and not one["trim_offsets"]) for one in after
    )


_OTHER_MODELS = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout", "fuse_unk")


def _parts(value: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """Of what may be nothing, one thing or a sequence."""
    if value is None:
        return []
    return [one for part in value[name] for one in _parts(part, name)] if value["type"] == "Sequence" else [value]


def _types(value: Mapping[str, Any] | None, name: str) -> list[str]:
    return [part["type"] for part in _parts(value, name)]
