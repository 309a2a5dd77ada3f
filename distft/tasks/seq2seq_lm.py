"""Sequence to sequence: a target text for a source text (Sutskever et al. 2014, arXiv:1409.3215)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from distft.data.formats import text_of
from distft.data.records import Document, Encoded, Record
from distft.errors import UserError
from distft.metrics.scores import Report, score_texts
from distft.recipe.tasks import Seq2SeqLM
from distft.run.digest import of_parts
from distft.tasks.protocol import Labels, Outcome, Setting, Vocabulary
from distft.tasks.shared.decoder_targets import TARGET_COLUMNS, UNANSWERED, Targets, speak
from distft.tasks.shared.encoder_decoder import Writing, WritingBatch
from distft.tasks.shared.model_randomness import keep_all_layers
from distft.tasks.shared.padding import COLUMNS, DROPPED, TRUNCATED, Inputs, tokens_of
from distft.tasks.shared.position_limits import check_positions

EMPTY = "with an empty source or target were dropped"


class Seq2SeqKind:
    auto = "AutoModelForSeq2SeqLM"
    peft = "SEQ_2_SEQ_LM"
    packs = False
    vocabulary: Vocabulary = "seq2seq"
    whole_head = False
    labelled = False
    exclusive = False

    def __init__(self, settings: Seq2SeqLM, fields: Mapping[str, str]) -> None:
        self._settings, self._fields = settings, fields

    def texts(self, record: Record) -> Iterator[str]:
        yield self._settings.prefix + text_of(record, "source", self._fields)
        yield text_of(record, "target", self._fields)

    def labels(self, record: Record) -> Iterator[str]:
        return iter(())

    def head(self, labels: Labels) -> dict[str, Any]:
        return {}

    def extend(self, model: Any, labels: Labels) -> None:
        keep_all_layers(model)

    def encoder(self, setting: Setting) -> Seq2SeqEncoder:
        data = setting.recipe.data
        targets = self._targets(setting)
        return Seq2SeqEncoder(targets, self._settings.prefix, self._fields, data.row_tokens, data.overlong == "drop")

    def task(self, setting: Setting, model: Any) -> Seq2Seq:
        check_positions(model, self._settings)
        targets = self._targets(setting)
        return Seq2Seq(targets, self._settings, model)

    def _targets(self, setting: Setting) -> Targets:
        tokenizer = setting.processor()
        if tokenizer.eos_token_id is None:
            raise UserError("task: seq2seq-lm needs a tokenizer with an end-of-sequence token; this one has none")
        speak(tokenizer, self._settings)
        return Targets(tokenizer, self._settings.longest_target)


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
            return Encoded([], {EMPTY: 1})
        if long and self.drop:
            return Encoded([], {DROPPED: 1})
        written, cut = self.targets.columns(target)
        return Encoded([Document({**columns, **written}, size, len(written["labels"]))], {**notes, **cut})


class Seq2Seq(Writing):
    """The task for any encoder-decoder of transformers that reads text."""

    def __init__(self, targets: Targets, settings: Seq2SeqLM, model: Any) -> None:
        self._inputs = Inputs(model, targets.tokenizer)
        prompt = [targets.start(model), *targets.opening]
        super().__init__(targets.tokenizer, settings, prompt, self._inputs.filler)

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> WritingBatch:
        sources = self._inputs.padded(rows, device)
        return self.batch(self._inputs(sources), sources.documents, sources.useful_tokens, device)

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        return score_texts([outcome["reference"] for outcome in outcomes], [outcome["text"] for outcome in outcomes])
