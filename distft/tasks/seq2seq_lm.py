"""Task seq2seq-lm: generate a target text from a source text (Sutskever et al. 2014, arXiv:1409.3215)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from distft.data.formats import text_of
from distft.data.records import Document, Encoded, Record
from distft.errors import UserError
from distft.metrics.scores import score_texts
from distft.recipe.tasks import Seq2SeqLM
from distft.run.digest import of_parts
from distft.tasks.protocol import ModelSpec, Setting, TaskSpec
from distft.tasks.shared.boundaries import VARLEN
from distft.tasks.shared.decoder_targets import TARGET_COLUMNS, UNANSWERED, Targets, set_languages
from distft.tasks.shared.encoder_decoder import EncoderDecoder, Sources
from distft.tasks.shared.flat_pairs import can_be_given_pairs
from distft.tasks.shared.model_randomness import keep_all_layers
from distft.tasks.shared.padding import COLUMNS, DROPPED, TRUNCATED, Inputs, tokens_of
from distft.tasks.shared.position_limits import check_positions
from distft.tasks.shared.tokenizer_family import SEQ2SEQ

EMPTY_SIDE = "with an empty source or target were dropped"


def spec(settings: Seq2SeqLM, fields: Mapping[str, str]) -> TaskSpec:
    def texts(record: Record) -> Iterator[str]:
        yield settings.prefix + text_of(record, "source", fields)
        yield text_of(record, "target", fields)

    def targets(setting: Setting) -> Targets:
        tokenizer = setting.processor()
        if tokenizer.eos_token_id is None:
            raise UserError("task: seq2seq-lm needs a tokenizer with an end-of-sequence token; this one has none")
        set_languages(tokenizer, settings)
        return Targets(tokenizer, settings.longest_target)

    def encoder(setting: Setting) -> Seq2SeqEncoder:
        data = setting.recipe.data
        return Seq2SeqEncoder(targets(setting), settings.prefix, fields, data.row_tokens, data.overlong == "drop")

    def build(setting: Setting, model: Any) -> EncoderDecoder:
        check_positions(model, settings)
        return seq2seq_task(targets(setting), settings, model)

    model = ModelSpec(
        "AutoModelForSeq2SeqLM",
        SEQ2SEQ,
        peft_task="SEQ_2_SEQ_LM",
        tells_documents=True,
        extend=lambda model, labels: keep_all_layers(model),
    )
    return TaskSpec(model, texts, encoder, build, input_field="source")


@dataclass(frozen=True)
class Seq2SeqEncoder:
    targets: Targets
    prefix: str
    fields: Mapping[str, str]
    row_tokens: int
    drop: bool

    columns = {**COLUMNS, **TARGET_COLUMNS}  # noqa: RUF012 - a constant of the class

    @cached_property
    def digest(self) -> str:
        return of_parts(
            "seq2seq-lm", self.targets.digest, self.prefix, sorted(self.fields.items()), self.row_tokens, self.drop
        )

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        source = text_of(record, "source", self.fields)
        tokenizer = self.targets.tokenizer
        columns: dict[str, Any] = tokens_of(tokenizer, self.prefix + source)
        notes: dict[str, int] = {}
        if long := len(columns["tokens"]) > self.row_tokens:
            columns = tokens_of(tokenizer, self.prefix + source, limit=self.row_tokens)
            notes[TRUNCATED] = 1
        size = len(columns["tokens"])
        if not answered:
            return Encoded([Document({**columns, **UNANSWERED}, size, 0)], notes)
        target = text_of(record, "target", self.fields).strip()
        if not target or not source.strip():
            return Encoded([], {EMPTY_SIDE: 1})
        if long and self.drop:
            return Encoded([], {DROPPED: 1})
        written, cut = self.targets.columns(target)
        return Encoded([Document({**columns, **written}, size, len(written["labels"]))], {**notes, **cut})


def seq2seq_task(targets: Targets, settings: Seq2SeqLM, model: Any) -> EncoderDecoder:
    """The task for any encoder-decoder of transformers that reads text."""
    inputs = Inputs(model, targets.tokenizer)
    inputs.flat = False  # which is for encoders alone
    flat = getattr(model.config, "_attn_implementation", "") == VARLEN and can_be_given_pairs(model)

    def read(rows: Sequence[Sequence[Document]], device: torch.device) -> Sources:
        padded = inputs.padded(rows, device)
        sizes = [document.size for document in padded.documents] or [padded.input_ids.shape[1]]
        return Sources(inputs(padded), padded.documents, padded.useful_tokens, sizes)

    prompt = [targets.start(model), *targets.opening]
    return EncoderDecoder(targets.tokenizer, settings, prompt, inputs.filler, read, score_texts, flat)
