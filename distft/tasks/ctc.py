"""Task ctc: speech to text by an encoder and CTC, connectionist temporal classification (Graves et al. 2006)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from distft.data.audio import Floats, files_of, milliseconds, samples_of, to_float
from distft.data.formats import text_of
from distft.data.processors import digest_of_files
from distft.data.records import Column, Document, Encoded, Record
from distft.errors import UserError
from distft.metrics.scores import Report, score_transcripts
from distft.recipe.tasks import CTC
from distft.run.digest import of_parts
from distft.tasks.protocol import ModelSpec, Outcome, Setting, TaskSpec, mean, only
from distft.tasks.shared.decoder_targets import TARGET_COLUMNS, UNANSWERED
from distft.tasks.shared.encoder_decoder import in_dtype_of
from distft.tasks.shared.model_randomness import keep_all_layers, masks_from
from distft.tasks.shared.padding import DROPPED, TRUNCATED, column, pack_json, unpack_json
from distft.tasks.shared.tokenizer_family import CHARACTERS
from distft.tasks.shared.transfer import ON_CPU

UTTERANCES = "utterances"
UNKNOWN_CHARACTERS = "with characters that the tokenizer does not know"
UNSPELLABLE = "without any character that the tokenizer knows were dropped"
FAST = "with more characters than their audio has time for were dropped"
SPEECH_COLUMNS: Mapping[str, str] = {"samples": "int16", **TARGET_COLUMNS}
USUAL = (400, 320)  # samples of one frame and to the next, of wav2vec2 and most that are built like it


def spec(settings: CTC, fields: Mapping[str, str]) -> TaskSpec:
    def encoder(setting: Setting) -> CTCEncoder:
        processor = processor_of(setting, "ctc")
        rate = int(processor.feature_extractor.sampling_rate)
        pace = pace_of(Path(processor.tokenizer.name_or_path))
        return CTCEncoder(processor.tokenizer, rate, fields, setting.recipe.data.row_tokens, *pace)

    def build(setting: Setting, model: Any) -> CTCTask:
        processor = processor_of(setting, "ctc")
        frames = getattr(model, "_get_feat_extract_output_lengths", None)
        if frames is None or model.main_input_name != "input_values":
            raise UserError(
                f"task ctc needs a model that reads audio samples, like wav2vec2; {model.config.model_type} does not"
            )
        known, told = processor.tokenizer.vocab_size, model.config.vocab_size
        if known > told:
            raise UserError(
                f"the tokenizer has {known} characters, but the model predicts {told}; set its vocab_size to {known}"
            )
        return CTCTask(processor, frames, model.config)

    model = ModelSpec(
        "AutoModelForCTC", CHARACTERS, trains_head=True, extend=lambda model, labels: keep_all_layers(model)
    )
    return TaskSpec(model, lambda record: [text_of(record, "text", fields)], encoder, build, input_field="audio")


def processor_of(setting: Setting, task: str) -> Any:
    """Raises UserError where a model comes without the one half of it or the other."""
    processor = setting.processor()
    for part in ("feature_extractor", "tokenizer"):
        if not hasattr(processor, part):
            raise UserError(f"task {task} needs a {part.replace('_', ' ')}, which this model folder lacks; add it")
    return processor


def pace_of(folder: Path) -> tuple[int, int]:
    """Samples of one frame and to the next, by the convolutions that config.json in a model's folder tells of."""
    width = stride = 1
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for kernel, step in zip(config["conv_kernel"], config["conv_stride"], strict=True):
            width += (kernel - 1) * stride
            stride *= step
    except (OSError, ValueError, TypeError, KeyError):  # what is wrong with a model is said where it is loaded
        return USUAL
    return width, stride


@dataclass(frozen=True)
class CTCEncoder:
    """Recordings and how their texts are spelt. A size is in milliseconds.

    Attributes:
        width, stride: samples of one frame, and from its beginning to that of the next.
    """

    tokenizer: Any
    rate: int
    fields: Mapping[str, str]
    row_milliseconds: int
    width: int
    stride: int

    columns = SPEECH_COLUMNS

    @cached_property
    def digest(self) -> str:
        parts: list[Any] = [self.rate, sorted(self.fields.items()), self.row_milliseconds]
        pace = (self.width, self.stride)
        parts += [] if pace == USUAL else [pace]  # without, so that what older versions have encoded is found
        return of_parts("ctc", digest_of_files(self.tokenizer), *parts)

    @cached_property
    def _spelt(self) -> Callable[[str], str]:
        """The case of the tokenizer: many know only one."""
        if getattr(self.tokenizer, "do_lower_case", False):  # it reads and writes lower case for capitals
            return str.lower
        letters = "".join(token for token in self.tokenizer.get_vocab() if len(token) == 1)
        upper, lower = any(map(str.isupper, letters)), any(map(str.islower, letters))
        return str.upper if upper and not lower else str.lower if lower and not upper else str

    def files(self, record: Record) -> Sequence[Path]:
        return files_of(record, self.fields)

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        samples = samples_of(record, self.fields, self.rate)
        size = milliseconds(len(samples), self.rate)
        long = size > self.row_milliseconds
        if not answered:
            samples = samples[: self.row_milliseconds * self.rate // 1000]
            document = Document({"samples": samples, **UNANSWERED}, min(size, self.row_milliseconds), 0)
            return Encoded([document], {TRUNCATED: 1} if long else {})
        text = self._spelt(" ".join(text_of(record, "text", self.fields).split()))
        if long:
            return Encoded([], {DROPPED: 1})
        labels = np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else [], np.int32)
        unknown = labels == self.tokenizer.unk_token_id
        if text and unknown.all():
            return Encoded([], {UNSPELLABLE: 1})
        if needed(labels) > max(1, (len(samples) - self.width) // self.stride + 1):
            return Encoded([], {FAST: 1})
        document = Document({"samples": samples, "labels": labels, "about": pack_json(text)}, size)
        return Encoded([document], {UNKNOWN_CHARACTERS: 1} if unknown.any() else {})


def needed(labels: Column) -> int:
    """Frames that labels take at least: between two of a kind there is a blank."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


@dataclass(frozen=True)
class CTCBatch:
    """B recordings of N samples; one of silence where there are no documents.

    Attributes:
        inputs: of the model, by the names of its arguments: fp32 [B, N], and a mask if it takes one.
        frames: int64 [B] on the CPU, how many outputs are of the recording and not of what it is padded with.
        labels: int64, of all documents, one after the other.
        lengths: int64 [B] on the CPU, how many labels each has.
        possible: whether each has frames enough for its labels. What has not is not learned, and not counted.
    """

    inputs: Mapping[str, torch.Tensor]
    frames: torch.Tensor = field(metadata=ON_CPU)
    labels: torch.Tensor
    lengths: torch.Tensor = field(metadata=ON_CPU)
    possible: Sequence[bool]
    documents: Sequence[Document]

    @property
    def useful_tokens(self) -> int:
        return sum(document.size for document in self.documents)


class CTCTask:
    """The task for any model of transformers with a CTC head over samples.

    What a recording is padded with is masked if its feature extractor says so. Models that normalise over all of a
    recording (`feat_extract_norm` "group", such as wav2vec2-base) were trained without that mask: of them alone a
    prediction depends, a little, on the longest recording beside it.

    Args:
        frames: the number of outputs for a number of samples, int64 [B] to int64 [B].
    """

    counted = (UTTERANCES,)

    def __init__(self, processor: Any, frames: Callable[[torch.Tensor], torch.Tensor], config: Any) -> None:
        self._tokenizer, self._frames = processor.tokenizer, frames
        self._normalize = processor.feature_extractor.do_normalize
        self._masks = processor.feature_extractor.return_attention_mask
        self._blank = self._tokenizer.pad_token_id
        names = ("pad_token_id", "unk_token_id", "bos_token_id", "eos_token_id")
        self._silent = {getattr(self._tokenizer, name) for name in names}
        self._shortest = self._samples(1)
        # A mask of SpecAugment has to have room.
        self._width = self._samples(max(1, getattr(config, "mask_time_length", 1)))

    def _samples(self, frames: int) -> int:
        """A number of samples, if not the smallest, that gives so many frames."""
        count = 1
        while int(self._frames(torch.tensor([count]))[0]) < frames:
            count *= 2
        return count

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> CTCBatch:
        documents = [document for row in rows for document in row]
        heard = [self._heard(document) for document in documents] or [np.zeros(self._width, np.float32)]
        width = max(self._width, *map(len, heard))
        values, mask = np.zeros((len(heard), width), np.float32), np.zeros((len(heard), width), np.int64)
        for index, samples in enumerate(heard):
            values[index, : len(samples)] = samples
            mask[index, : max(len(samples), self._shortest)] = 1
        frames = self._frames(torch.from_numpy(mask.sum(-1)))
        counts = [len(document["labels"]) for document in documents] or [0]
        possible = [needed(document["labels"]) <= int(n) for document, n in zip(documents, frames, strict=False)]
        inputs = {"input_values": torch.from_numpy(values).to(device)}
        if self._masks:
            inputs["attention_mask"] = torch.from_numpy(mask).to(device)
        labels = column(documents, "labels", device).long()
        return CTCBatch(inputs, frames, labels, torch.tensor(counts), possible, documents)

    def _heard(self, document: Document) -> Floats:
        samples = to_float(document["samples"])
        return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7) if self._normalize else samples

    def counts(self, batch: CTCBatch) -> dict[str, int]:
        return {UTTERANCES: sum(batch.possible)}

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        return mean(counts)

    def loss(self, model: Any, batch: CTCBatch) -> dict[str, torch.Tensor]:
        with masks_from(batch.documents):
            logits = self._logits(model, batch)
        return {UTTERANCES: self._losses(logits, batch)[: len(batch.documents)].sum()}

    def _logits(self, model: Any, batch: CTCBatch) -> torch.Tensor:
        """fp32 [B, frames, characters]."""
        logits: torch.Tensor = model(**in_dtype_of(model, batch.inputs)).logits
        return logits.float()

    def _losses(self, logits: torch.Tensor, batch: CTCBatch) -> torch.Tensor:
        """fp32 [B]; 0, with gradients of 0, where there is no way to write the labels."""
        chances = logits.log_softmax(-1).transpose(0, 1)
        return functional.ctc_loss(
            chances, batch.labels, batch.frames, batch.lengths, self._blank, reduction="none", zero_infinity=True
        )

    def predict(self, model: Any, batch: CTCBatch) -> list[Outcome]:
        """`text`: what is likeliest frame by frame; where it is known, `reference`: what was said."""
        logits = self._logits(model, batch)
        losses = self._losses(logits, batch).tolist()
        outcomes: list[Outcome] = []
        for index, document in enumerate(batch.documents):
            outcome: Outcome = {"text": self._text(logits[index, : int(batch.frames[index])])}
            if len(document["about"]):
                reference = unpack_json(document["about"])
                outcome.update(reference=reference, loss=losses[index], targets=int(batch.possible[index]))
            outcomes.append(outcome)
        return outcomes

    def _text(self, logits: torch.Tensor) -> str:
        """Repeats are one, and blanks are nothing. `logits` [frames, characters]."""
        tokens = torch.unique_consecutive(logits.argmax(-1)).tolist()
        written = [token for token in tokens if token not in self._silent]
        return str(self._tokenizer.decode(written, group_tokens=False)).strip()

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        references = [outcome["reference"] for outcome in outcomes]
        return score_transcripts(references, [outcome["text"] for outcome in outcomes])

    def join(self, parts: Sequence[Outcome]) -> Outcome:
        return only(parts)

    def answer(self, outcome: Outcome) -> Outcome:
        return {"text": outcome["text"]}
