"""Processors in transformers' sense, tokenizer and feature extractor in one: made from texts, and told apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distft.run.digest import of_parts

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
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    special = [END, START, *(f"<|{code}|>" for code in LANGUAGES), *OTHERS]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    tokenizer = WhisperTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        pad_token=END,
        extra_special_tokens=special[1:],
    )
    extractor = WhisperFeatureExtractor(feature_size=mels, sampling_rate=RATE, chunk_length=seconds)
    return WhisperProcessor(extractor, tokenizer)


def digest_of_files(tokenizer: Any) -> str:
    """sha256 (hex) of what a tokenizer writes of itself: for those that are Python and not one tokenizer.json."""
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    settings = json.loads(files.pop("tokenizer_config.json"))
    kept = {name: value for name, value in settings.items() if name not in _OF_LOADING}
    return of_parts(kept, {name: sha256(data).hexdigest() for name, data in files.items()})
