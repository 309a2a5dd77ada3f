"""Tokenizer families: what models with the same kind of input have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from distft.data import processors
from distft.data.templates import Template
from distft.errors import UserError
from distft.recipe.schema import Recipe
from distft.run.digest import of_parts
from distft.tasks.shared.padding import digest_of

MakeProcessor = Callable[[Iterator[str], int, Any], Any]
"""From texts, the size of the vocabulary and transformers' configuration of the model to a new processor."""


@dataclass(frozen=True)
class TokenizerFamily:
    """One kind of input, and what follows from it for models and tokenizers.

    Attributes:
        make: a new tokenizer, or processor, for `model.init`.
        stacks: "one" (encoder or decoder), "two" (encoder and decoder), or "any".
        limit: which of the model's limits bounds `data.row_tokens`: its positions, those of its encoder, or none.
        hears: it reads sound, so it has a processor; transformers cannot load such models straight into shards.
        chats: a chat template belongs to it.
        masks: texts hold its mask token.
        may_lack_head: a base model may come without the layers beside the transformer proper.
        spells: the layer of its characters is made anew for each tokenizer.
        decoder_start: the token that a new decoder is given first, from the tokenizer; None: there is no decoder.
    """

    make: MakeProcessor
    stacks: Literal["one", "two", "any"] = "one"
    limit: Literal["positions", "source", "none"] = "none"
    hears: bool = False
    chats: bool = False
    masks: bool = False
    may_lack_head: bool = False
    spells: bool = False
    decoder_start: Callable[[Any], int] | None = None

    def digest(self, processor: Any, recipe: Recipe) -> str:
        """sha256 (hex) of the tokenizer, with the chat template if there is one."""
        if self.chats:
            return Template.load(processor, recipe.data).identity
        tokenizer = getattr(processor, "tokenizer", processor)
        return digest_of(tokenizer) if tokenizer.is_fast else of_parts(sorted(tokenizer.get_vocab().items()))

    def special_ids(self, tokenizer: Any) -> dict[str, Any]:
        """What the configuration of a new model says of special tokens."""
        ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        return ids if self.decoder_start is None else {**ids, "decoder_start_token_id": self.decoder_start(tokenizer)}


def _speech_processor(texts: Iterator[str], vocab_size: int, config: Any) -> Any:
    seconds, mels = getattr(config, "max_source_positions", 1500) // 50, getattr(config, "num_mel_bins", 80)
    if seconds < 1 or mels < 1:
        raise UserError("model.init.config: give max_source_positions of 50 or more, and num_mel_bins of 1 or more")
    return processors.speech_processor(texts, vocab_size, seconds, mels)


DECODER = TokenizerFamily(
    lambda texts, vocab_size, config: processors.causal_tokenizer(texts, vocab_size), limit="positions", chats=True
)
ENCODER = TokenizerFamily(
    lambda texts, vocab_size, config: processors.encoder_tokenizer(texts, vocab_size),
    stacks="any",
    limit="positions",
    masks=True,
    may_lack_head=True,
)
SEQ2SEQ = TokenizerFamily(
    lambda texts, vocab_size, config: processors.seq2seq_tokenizer(texts, vocab_size),
    stacks="two",
    limit="source",
    decoder_start=lambda tokenizer: int(tokenizer.pad_token_id),
)
CHARACTERS = TokenizerFamily(
    lambda texts, vocab_size, config: processors.character_processor(texts), hears=True, spells=True
)
SPEECH = TokenizerFamily(
    _speech_processor,
    stacks="two",
    hears=True,
    decoder_start=lambda tokenizer: int(tokenizer.convert_tokens_to_ids("<|startoftranscript|>")),
)
