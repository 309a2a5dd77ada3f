"""Speech to text by an encoder and a decoder: the Whisper family (Radford et al. 2022, arXiv:2212.04356)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from distft.data.audio import milliseconds, samples_of, to_float
from distft.data.formats import text_of
from distft.data.records import Document, Encoded, Record
from distft.errors import UserError
from distft.metrics.scores import Report, score_transcripts
from distft.recipe.tasks import SpeechSeq2Seq
from distft.run.digest import of_parts
from distft.tasks.ctc import SPEECH_COLUMNS, processor_of
from distft.tasks.protocol import Labels, Outcome, Setting, Vocabulary
from distft.tasks.shared.decoder_targets import UNANSWERED, Targets
from distft.tasks.shared.encoder_decoder import Writing, WritingBatch
from distft.tasks.shared.model_randomness import keep_all_layers
from distft.tasks.shared.position_limits import check_positions

TRUNCATED = "longer than the model hears at once were truncated"
DROPPED = "longer than the model hears at once were dropped"


class SpeechKind:
    auto = "AutoModelForSpeechSeq2Seq"
    peft = None
    packs = False
    vocabulary: Vocabulary = "speech"
    whole_head = False
    labelled = False
    exclusive = False

    def __init__(self, settings: SpeechSeq2Seq, fields: Mapping[str, str]) -> None:
        self._settings, self._fields = settings, fields

    def texts(self, record: Record) -> Iterator[str]:
        yield text_of(record, "text", self._fields)

    def labels(self, record: Record) -> Iterator[str]:
        return iter(())

    def head(self, labels: Labels) -> dict[str, Any]:
        return {}

    def extend(self, model: Any, labels: Labels) -> None:
        keep_all_layers(model)

    def encoder(self, setting: Setting) -> SpeechEncoder:
        data = setting.recipe.data
        extractor, targets = self._parts(setting)
        encoder = SpeechEncoder(extractor, targets, self._fields, data.overlong == "drop")
        if data.row_tokens < encoder.window:
            raise UserError(
                f"data.row_tokens {data.row_tokens} are milliseconds here, and the model takes {encoder.window} of any "
                f"recording, what is missing as silence; set data.row_tokens to {encoder.window}"
            )
        return encoder

    def task(self, setting: Setting, model: Any) -> Speech:
        check_positions(model, self._settings)
        extractor, targets = self._parts(setting)
        frames = 2 * model.config.max_source_positions  # the encoder halves them
        if (extractor.nb_max_frames, extractor.feature_size) != (frames, model.config.num_mel_bins):
            raise UserError(
                f"the feature extractor makes {extractor.nb_max_frames} frames of {extractor.feature_size} numbers, "
                f"and the model takes {frames} of {model.config.num_mel_bins}; they are not of one model"
            )
        return Speech(extractor, targets, self._settings)

    def _parts(self, setting: Setting) -> tuple[Any, Transcripts]:
        """The feature extractor, and the tokenizer set to the language."""
        processor = processor_of(setting, "speech-seq2seq")
        if not hasattr(processor.feature_extractor, "nb_max_frames"):
            name = type(processor.feature_extractor).__name__
            raise UserError(f"task speech-seq2seq knows the Whisper family; {name} is of another")
        targets = Transcripts(processor.tokenizer, self._settings.longest_target)
        targets.speak(self._settings.language)
        return processor.feature_extractor, targets


class Transcripts(Targets):
    """What follows the token that begins all of Whisper's transcripts, and that a decoder is given."""

    def __call__(self, text: str, longest: int | None = None) -> list[int]:
        return super().__call__(text, None if longest is None else longest + 1)[1:]

    def start(self, model: Any) -> int:
        return int(self.tokenizer.prefix_tokens[0])

    def speak(self, language: str | None) -> None:
        """Raises UserError where the tokenizer does not know the language."""
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        if language is None:
            return
        token = f"<|{TO_LANGUAGE_CODE.get(language.lower(), language.lower())}|>"
        if token not in self.tokenizer.get_vocab():
            raise UserError(
                f"task.language: the tokenizer does not know {language!r}; use its English name or its code"
            )
        self.tokenizer.set_prefix_tokens(language=language, task="transcribe")


@dataclass(frozen=True)
class SpeechEncoder:
    """Recordings and what was said. All take the same time of the model, which is their size, in milliseconds."""

    extractor: Any
    targets: Transcripts
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

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        samples = samples_of(record, self.fields, self.extractor.sampling_rate)
        long = len(samples) > self.extractor.n_samples
        notes = {TRUNCATED: 1} if long else {}
        samples = samples[: self.extractor.n_samples]
        if not answered:
            return Encoded([Document({"samples": samples, **UNANSWERED}, self.window, 0)], notes)
        text = text_of(record, "text", self.fields).strip()
        if long and self.drop:
            return Encoded([], {DROPPED: 1})
        written, cut = self.targets.columns(text)
        document = Document({"samples": samples, **written}, self.window, len(written["labels"]))
        return Encoded([document], {**notes, **cut})


class Speech(Writing):
    """The task for Whisper and its like.

    The model is given log-mel spectra, fp32 [B, mels, frames], and a mask [B, frames], within which SpecAugment stays.
    """

    def __init__(self, extractor: Any, targets: Transcripts, settings: SpeechSeq2Seq) -> None:
        tokenizer = targets.tokenizer
        super().__init__(tokenizer, settings, [targets.start(None), *targets.opening], tokenizer.pad_token_id)
        self._extractor = extractor

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> WritingBatch:
        documents = [document for row in rows for document in row]
        heard = [to_float(document["samples"]) for document in documents]
        rate = self._extractor.sampling_rate
        inputs = self._extractor(
            heard or [np.zeros(1, np.float32)], sampling_rate=rate, return_tensors="pt", return_attention_mask=True
        )
        useful = sum(milliseconds(len(samples), rate) for samples in heard)
        return self.batch(inputs, documents, useful, device)

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        references = [outcome["reference"] for outcome in outcomes]
        return score_transcripts(references, [outcome["text"] for outcome in outcomes])
