"""Processors (tokenizer plus feature extractor): train a small one, and compare two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distft.run.digest import of_parts

END_OF_TEXT = "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
RATE = 16000  # samples a second
BLANK, UNKNOWN, BETWEEN = "<pad>", "<unk>", "|"
END, START = "<|endoftext|>", "<|startoftranscript|>"  # of Whisper; languages come after them
OTHERS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
# What transformers notes of where a tokenizer came from.
_OF_LOADING = {"is_local", "local_files_only", "name_or_path", "processor_class", "model_specific_special_tokens"}


def character_processor(texts: Iterator[str]) -> Any:
    """For CTC: a token for each character of the texts, and "|" between words."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    found: set[str] = set()
    for text in texts:
        found.update(text)
    characters = sorted(c for c in found if not c.isspace() and c != BETWEEN)
    vocabulary = {token: index for index, token in enumerate([BLANK, UNKNOWN, BETWEEN, *characters])}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(vocabulary), encoding="utf-8")
        tokenizer = Wav2Vec2CTCTokenizer(str(file), bos_token=None, eos_token=None)
    return Wav2Vec2Processor(Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True), tokenizer)


def speech_processor(texts: Iterator[str], vocab_size: int, seconds: int = 30, mels: int = 80) -> Any:
    """For models of Whisper's kind: a byte-level BPE with Whisper's special tokens, and log-mel features.

    Args:
        seconds: what the model hears at once; its `max_source_positions` are 50 a second.
        mels: the model's `num_mel_bins`.
    """
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    special = [END, START, *(f"<|{code}|>" for code in LANGUAGES), *OTHERS]
    bpe = _byte_level_bpe(texts, vocab_size, special, prefix_space=False)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = WhisperTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        pad_token=END,
        extra_special_tokens=special[1:],
    )
    extractor = WhisperFeatureExtractor(feature_size=mels, sampling_rate=RATE, chunk_length=seconds)
    return WhisperProcessor(extractor, tokenizer)


def causal_tokenizer(texts: Iterator[str], vocab_size: int) -> Any:
    """For decoders: a byte-level BPE with a token that ends a text and one for each role of a conversation."""
    bpe = _byte_level_bpe(texts, vocab_size, [END_OF_TEXT, *ROLES], prefix_space=False)
    return _fast(bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def encoder_tokenizer(texts: Iterator[str], vocab_size: int) -> Any:
    """For encoders: a byte-level BPE that writes [CLS] and [SEP] around a text or a pair of texts."""
    from tokenizers import processors

    bpe = _byte_level_bpe(texts, vocab_size, list(SPECIAL.values()), prefix_space=True)
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    ids = [(token, bpe.token_to_id(token)) for token in SPECIAL.values() if token in pair]
    bpe.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ids)
    return _fast(bpe, add_prefix_space=True, **SPECIAL)


def seq2seq_tokenizer(texts: Iterator[str], vocab_size: int) -> Any:
    """For encoder-decoders: a byte-level BPE that ends each text. What pads must not be what ends: a decoder begins
    with the padding token."""
    from tokenizers import processors

    bpe = _byte_level_bpe(texts, vocab_size, [END_OF_TEXT, *ROLES], prefix_space=False)
    end = [(END_OF_TEXT, bpe.token_to_id(END_OF_TEXT))]
    bpe.post_processor = processors.TemplateProcessing(single=f"$A {END_OF_TEXT}", special_tokens=end)
    return _fast(bpe, eos_token=END_OF_TEXT, pad_token=ROLES[0])


def _byte_level_bpe(texts: Iterator[str], vocab_size: int, special: list[str], prefix_space: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def _fast(bpe: Any, **settings: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=bpe, **settings)


def digest_of_files(tokenizer: Any) -> str:
    """sha256 (hex) of what a tokenizer writes of itself: for those that are Python and not one tokenizer.json."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    settings = json.loads(files.pop("tokenizer_config.json"))
    kept = {name: value for name, value in settings.items() if name not in _OF_LOADING}
    return of_parts(kept, {name: sha256(data).hexdigest() for name, data in files.items()})
