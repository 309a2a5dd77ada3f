"""Small random models of real architectures, with a tokenizer trained on the data: `model.init`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from distft.data import sources
from distft.data.sources import Source
from distft.errors import UserError
from distft.process import stop_signals
from distft.recipe.schema import ModelInit
from distft.run.files import complete_folder
from distft.tasks.protocol import AnyKind, Kind, Labels

EOS = "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}


def create(init: ModelInit, kind: AnyKind, labels: Labels, data: list[tuple[Kind, Source]], folder: Path) -> None:
    """A small random model for a kind of task and its tokenizer, in `folder`; all or nothing.

    Args:
        data: what the tokenizer is trained on.

    Raises:
        UserError: transformers does not know the architecture or one of its sizes, or does not take them.
    """
    import transformers
    from transformers import AutoConfig

    try:
        known = AutoConfig.for_model(init.architecture)
    except ValueError:
        raise UserError(f"model.init.architecture: transformers knows no '{init.architecture}'") from None
    for key in init.config:
        if not hasattr(known, key):
            raise UserError(f"model.init.config.{key}: {init.architecture} has no such setting")
        if known.attribute_map.get(key, key) == "vocab_size":  # some have a name of their own for it
            raise UserError(
                f"model.init.config.{key}: the tokenizer decides this; leave it out, and set model.init.vocab_size"
            )
    with _in_a_sentence(init):
        wanted = AutoConfig.for_model(init.architecture, **init.config)
    processor = new_processor(kind, init.vocab_size, texts(data), wanted)
    tokenizer = getattr(processor, "tokenizer", processor)
    tokens = len(tokenizer) if tokenizer is not processor else as_read(processor, wanted)
    with _in_a_sentence(init):
        sizes = {"vocab_size": tokens, **special_ids(kind, tokenizer), **init.config}
        config = AutoConfig.for_model(init.architecture, **sizes, **kind.head(labels))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init.seed)
            model = getattr(transformers, kind.auto).from_config(config, dtype=torch.float32)
    with complete_folder(folder) as staged:
        model.save_pretrained(staged)
        processor.save_pretrained(staged)


def as_read(tokenizer: Any, config: Any) -> int:
    """How many tokens it has when transformers reads it beside this configuration: of some models one is added."""
    from transformers import AutoTokenizer

    with TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return max(len(tokenizer), len(AutoTokenizer.from_pretrained(folder)))


@contextmanager
def _in_a_sentence(init: ModelInit) -> Iterator[None]:
    """What transformers does not take, as a UserError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (ValueError, TypeError, RuntimeError, KeyError, ZeroDivisionError, StrictDataclassError) as error:
        reason = f"it knows no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(f"model.init: {init.architecture} cannot be made with these sizes ({reason})") from None


def texts(data: list[tuple[Kind, Source]]) -> Iterator[str]:
    for kind, source in data:
        for record in sources.read(source):
            stop_signals.check()
            yield from kind.texts(record)


def special_ids(kind: AnyKind, tokenizer: Any) -> dict[str, Any]:
    """What a model's configuration says of special tokens."""
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if kind.vocabulary == "seq2seq":
        ids["decoder_start_token_id"] = tokenizer.pad_token_id
    if kind.vocabulary == "speech":
        ids["decoder_start_token_id"] = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    return ids


def new_processor(kind: AnyKind, vocab_size: int, found: Iterator[str], config: Any) -> Any:
    if kind.vocabulary == "characters":
        from distft.data.processors import character_processor

        return character_processor(found)
    if kind.vocabulary == "speech":
        from distft.data.processors import speech_processor

        seconds, mels = getattr(config, "max_source_positions", 1500) // 50, getattr(config, "num_mel_bins", 80)
        if seconds < 1 or mels < 1:
            raise UserError("model.init.config: give max_source_positions of 50 or more, and num_mel_bins of 1 or more")
        return speech_processor(found, vocab_size, seconds, mels)
    return new_tokenizer(kind, vocab_size, found)


def new_tokenizer(kind: AnyKind, vocab_size: int, found: Iterator[str]) -> Any:
    """A byte-level BPE with the special tokens of a decoder, an encoder, or an encoder-decoder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    encoder = kind.vocabulary == "encoder"
    special = list(SPECIAL.values()) if encoder else [EOS, *ROLES]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=encoder)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(found, trainer)
    ids = [(token, bpe.token_to_id(token)) for token in special]
    if encoder:
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
        bpe.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair=pair, special_tokens=[one for one in ids if one[0] in pair]
        )
        return PreTrainedTokenizerFast(tokenizer_object=bpe, add_prefix_space=True, **SPECIAL)
    if kind.vocabulary == "seq2seq":
        bpe.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=ids[:1])
        # what fills up must not be what ends: a decoder begins with the filler
        return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=ROLES[0])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS)
