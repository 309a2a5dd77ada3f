"""Task speech-seq2seq: speech to text by an encoder-decoder, Whisper (Radford et al. 2022, arXiv:2212.04356)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distft.data.audio import files_of, milliseconds, samples_of, to_float
from distft.data.formats import text_of
from distft.data.records import Document, Encoded, Record
from distft.errors import UserError
from distft.metrics.scores import score_transcripts
from distft.recipe.tasks import SpeechSeq2Seq
from distft.run.digest import of_parts
from distft.tasks.ctc import SPEECH_COLUMNS, processor_of
from distft.tasks.protocol import ModelSpec, Setting, TaskSpec
from distft.tasks.shared.decoder_targets import UNANSWERED, Targets
from distft.tasks.shared.encoder_decoder import EncoderDecoder, Sources
from distft.tasks.shared.model_randomness import keep_all_layers
from distft.tasks.shared.position_limits import check_positions
from distft.tasks.shared.tokenizer_family import SPEECH

WINDOW_TRUNCATED = "longer than the model hears at once were truncated"
WINDOW_DROPPED = "longer than the model hears at once were dropped"


def spec(settings: SpeechSeq2Seq, fields: Mapping[str, str]) -> TaskSpec:
    model = ModelSpec("AutoModelForSpeechSeq2Seq", SPEECH, extend=lambda model, labels: keep_all_layers(model))
    return TaskSpec(
        model,
        lambda record: [text_of(record, "text", fields)],
        partial(encoder_for, settings, fields),
        partial(task_for, settings),
        input_field="audio",
    )


def encoder_for(settings: SpeechSeq2Seq, fields: Mapping[str, str], setting: Setting) -> SpeechEncoder:
    data = setting.recipe.data
    extractor, targets = parts_of(settings, setting)
    encoder = SpeechEncoder(extractor, targets, fields, data.overlong == "drop")
    if data.row_tokens < encoder.window:
        raise UserError(
            f"data.row_tokens {data.row_tokens} milliseconds do not fit this model, which reads {encoder.window} "
            f"milliseconds of every recording, padded with silence; set data.row_tokens to {encoder.window}"
        )
    return encoder


def task_for(settings: SpeechSeq2Seq, setting: Setting, model: Any) -> EncoderDecoder:
    check_positions(model, settings)
    extractor, targets = parts_of(settings, setting)
    frames = 2 * model.config.max_source_positions  # the encoder halves them
    if (extractor.nb_max_frames, extractor.feature_size) != (frames, model.config.num_mel_bins):
        raise UserError(
            f"the feature extractor produces {extractor.nb_max_frames} frames of {extractor.feature_size} numbers, "
            f"but the model needs {frames} of {model.config.num_mel_bins}; use the model's own feature extractor"
        )
    return speech_task(extractor, targets, settings)


def parts_of(settings: SpeechSeq2Seq, setting: Setting) -> tuple[Any, Targets]:
    """The feature extractor, and the tokenizer set to the language."""
    processor = processor_of(setting, "speech-seq2seq")
    if not hasattr(processor.feature_extractor, "nb_max_frames"):
        name = type(processor.feature_extractor).__name__
        raise UserError(f"task speech-seq2seq supports only Whisper models; {name} belongs to another family")
    set_language(processor.tokenizer, settings.language)
    return processor.feature_extractor, Targets(processor.tokenizer, settings.longest_target, given=1)


def set_language(tokenizer: Any, language: str | None) -> None:
    """Set the tokenizer to a language. Raises UserError if it does not know the language."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    if language is None:
        return
    token = f"<|{TO_LANGUAGE_CODE.get(language.lower(), language.lower())}|>"
    if token not in tokenizer.get_vocab():
        raise UserError(f"task.language: the tokenizer does not know {language!r}; use its English name or its code")
    tokenizer.set_prefix_tokens(language=language, task="transcribe")


@dataclass(frozen=True)
class SpeechEncoder:
    """Recordings and what was said. All take the same time of the model, which is their size, in milliseconds."""

    extractor: Any
    targets: Targets
    fields: Mapping[str, str]
    drop: bool

    columns = SPEECH_COLUMNS

    @property
    def window(self) -> int:
        """What the model hears at once, in milliseconds."""
        return milliseconds(self.extractor.n_samples, self.extractor.sampling_rate)

    @cached_property
    def digest(self) -> str:
        heard = [self.extractor.n_samples, self.extractor.sampling_rate]
        return of_parts("speech-seq2seq", self.targets.digest, heard, sorted(self.fields.items()), self.drop)

    def files(self, record: Record) -> Sequence[Path]:
        return files_of(record, self.fields)

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        samples = samples_of(record, self.fields, self.extractor.sampling_rate)
        long = len(samples) > self.extractor.n_samples
        notes = {WINDOW_TRUNCATED: 1} if long else {}
        samples = samples[: self.extractor.n_samples]
        if not answered:
            return Encoded([Document({"samples": samples, **UNANSWERED}, self.window, 0)], notes)
        text = text_of(record, "text", self.fields).strip()
        if long and self.drop:
            return Encoded([], {WINDOW_DROPPED: 1})
        written, cut = self.targets.columns(text)
        document = Document({"samples": samples, **written}, self.window, len(written["labels"]))
        return Encoded([document], {**notes, **cut})


def speech_task(extractor: Any, targets: Targets, settings: SpeechSeq2Seq) -> EncoderDecoder:
    """The task for Whisper and its like.

    The model is given log-mel spectra, fp32 [B, mels, frames], and a mask [B, frames], within which SpecAugment stays.
    """
    rate, tokenizer = extractor.sampling_rate, targets.tokenizer

    def read(rows: Sequence[Sequence[Document]], device: torch.device) -> Sources:
        documents = [document for row in rows for document in row]
        heard = [to_float(document["samples"]) for document in documents]
        inputs = extractor(
            heard or [np.zeros(1, np.float32)], sampling_rate=rate, return_tensors="pt", return_attention_mask=True
        )
        return Sources(inputs, documents, sum(milliseconds(len(samples), rate) for samples in heard))

    prompt = [int(tokenizer.prefix_tokens[0]), *targets.opening]
    return EncoderDecoder(tokenizer, settings, prompt, tokenizer.pad_token_id, read, score_transcripts)
