"""Task sequence-classification: one label, several labels or a number for a text or a pair of texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from distft.data.class_names import NOT_LEARNED, label_text, place_of
from distft.data.formats import text_of, value_of
from distft.data.loader import Census
from distft.data.records import Column, Document, Encoded, Record, each
from distft.errors import UserError
from distft.metrics.scores import Report, score_many_labels, score_numbers, score_one_label
from distft.recipe.tasks import SequenceClassification
from distft.run.digest import of_parts
from distft.tasks.protocol import LABEL, Labels, LabelSpec, ModelSpec, Outcome, Setting, TaskSpec, mean, named, only
from distft.tasks.shared.padding import (
    COLUMNS,
    DROPPED,
    TRUNCATED,
    Inputs,
    Padded,
    all_tokens_of,
    column,
    digest_of,
    tokens_of,
)
from distft.tasks.shared.tokenizer_family import ENCODER

SEQUENCES = "sequences"
ONE_LABEL = "give one label without brackets, or set task.kind to multi-label"
LARGEST = float(np.finfo(np.float32).max)  # of the numbers that a regression can learn


def spec(settings: SequenceClassification, fields: Mapping[str, str]) -> TaskSpec:
    kind = settings.kind

    def encoder(setting: Setting) -> ClassificationEncoder:
        data = setting.recipe.data
        labels, drop = tuple(setting.labels), data.overlong == "drop"
        return ClassificationEncoder(setting.processor(), kind, labels, fields, data.row_tokens, drop)

    def build(setting: Setting, model: Any) -> Classification:
        make_padding_known(model, setting.processor)
        return Classification(kind, tuple(setting.labels), Inputs(model, setting.processor(), True))

    def find(record: Record) -> list[str]:
        names = label_names(record, kind, fields)
        return names if kind == "multi-label" else [no_list(name, record) for name in names]

    labels = LabelSpec(find, exclusive=kind == "single", check=check_spelling)
    return TaskSpec(
        ModelSpec(
            "AutoModelForSequenceClassification",
            ENCODER,
            peft_task="SEQ_CLS",
            tells_documents=True,
            trains_head=True,
            head=partial(head_settings, kind),
        ),
        lambda record: texts_of(record, fields),
        encoder,
        build,
        labels=None if kind == "regression" else labels,
    )


def head_settings(kind: str, labels: Labels) -> dict[str, Any]:
    """What transformers' configuration says of the classifier."""
    if kind == "regression":
        return {"num_labels": 1, "problem_type": "regression"}
    problem = "multi_label_classification" if kind == "multi-label" else "single_label_classification"
    return {**named(labels), "problem_type": problem}


def make_padding_known(model: Any, processor: Callable[[], Any]) -> None:
    """Decoders look for the last token before the padding.

    Raises:
        UserError: neither the model nor its tokenizer has a token for padding, or the model cannot be padded.
    """
    if getattr(model.config, "summary_type", None) == "last":  # XLNet: there the padding would be
        raise UserError(
            f"model.path: {model.config.model_type} cannot be used for texts padded on the right; use another model"
        )
    if getattr(model.config, "pad_token_id", None) is not None:
        return
    tokenizer = processor()
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if padding is None:
        raise UserError(
            "model.path: the tokenizer has neither a padding nor an end-of-sequence token, but this model "
            "needs one of them; set pad_token in its tokenizer_config.json"
        )
    model.config.pad_token_id = padding


def texts_of(record: Record, fields: Mapping[str, str]) -> list[str]:
    """The text, and the second where the data have pairs."""
    paired = "text_pair" in fields or record.fields.get("text_pair") is not None
    return [text_of(record, name, fields) for name in (["text", "text_pair"] if paired else ["text"])]


def label_names(record: Record, kind: str, fields: Mapping[str, str]) -> list[str]:
    """The label of a record, or all of its labels: names, or numbers as names.

    Raises:
        UserError: there is none where one is needed.
    """
    value = value_of(record, LABEL, fields)
    if kind == "multi-label":
        if isinstance(value, str) and value.lstrip()[:1] == "[":
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise UserError(f"{record.where}: label is not a valid list of labels: {value[:60]}") from None
        values = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) else [value]
        return [_learned(label, record) for one in values if (label := label_text(one)) is not None]
    if isinstance(value, list):
        raise UserError(f"{record.where}: label is a list, {str(value)[:60]}; {ONE_LABEL}")
    found = None if isinstance(value, dict) else label_text(value)
    if found is None:
        raise UserError(f"{record.where} has no label; give it one, or leave the record out")
    return [_learned(found, record)]


def no_list(label: str, record: Record) -> str:
    """Raises UserError if a label, which is to be a new run's, is the text of a list: '["pos"]'."""
    try:
        is_list = label.startswith("[") and isinstance(json.loads(label), list)
    except (ValueError, RecursionError):
        is_list = False
    if is_list:
        raise UserError(f"{record.where}: label is the text of a list, {label[:60]}; {ONE_LABEL}")
    return label


def _learned(label: str, record: Record) -> str:
    if label == str(NOT_LEARNED):
        raise UserError(f"{record.where}: label {label} stands for what is not learned; leave the record out")
    return label


def check_spelling(seen: Mapping[str, str]) -> None:
    """Raises UserError where true and false stand beside 0 and 1, which may mean the same."""
    words, numbers = ({"True", "False", "true", "false"} & seen.keys(), {"0", "1"} & seen.keys())
    if words and numbers:
        word, number = min(words), min(numbers)
        beside = f"label {word!r} stands beside label {number!r} ({seen[number]})"
        raise UserError(f"{seen[word]}: {beside}; write one meaning in one way")


def number_of(record: Record, fields: Mapping[str, str]) -> float:
    """The label of a record that is a number.

    Raises:
        UserError: it is none, or one that float32 cannot hold, in which it is learned.
    """
    value = value_of(record, LABEL, fields)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not abs(number) <= LARGEST:
        limit = "" if math.isnan(number) else f"; the largest that can be learned is {LARGEST:.1e}"
        raise UserError(f"{record.where}: label must be a number, not {str(value)[:60]!r}{limit}")
    return number


@dataclass(frozen=True)
class ClassificationEncoder:
    tokenizer: Any
    kind: str
    labels: tuple[str, ...]
    fields: Mapping[str, str]
    row_tokens: int
    drop: bool

    @property
    def columns(self) -> Mapping[str, str]:
        """`label`: its index; of several a 0 or 1 for each there is; a number. Empty: not known."""
        return {**COLUMNS, "label": "int32" if self.kind == "single" else "float32"}

    @cached_property
    def digest(self) -> str:
        parts = [self.kind, self.labels, sorted(self.fields.items()), self.row_tokens, self.drop]
        return of_parts("sequence-classification", digest_of(self.tokenizer), *parts)

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        texts = texts_of(record, self.fields)
        return self._encoded(record, texts, all_tokens_of(self.tokenizer, [texts])[0], answered)

    def encode_many(self, records: Sequence[Record]) -> list[Encoded | UserError]:
        texts = each(records, lambda record: texts_of(record, self.fields))
        whole = iter(all_tokens_of(self.tokenizer, [one for one in texts if not isinstance(one, UserError)]))
        made: list[Encoded | UserError] = []
        for record, one in zip(records, texts, strict=True):
            if isinstance(one, UserError):
                made.append(one)
            else:
                made += each([record], partial(self._encoded, texts=one, whole=next(whole), answered=True))
        return made

    def _encoded(self, record: Record, texts: Sequence[str], whole: Mapping[str, Column], answered: bool) -> Encoded:
        """`whole`: the tokens of the texts."""
        if not len(whole["tokens"]):
            return Encoded([], {"without any token were dropped": 1})
        long = len(whole["tokens"]) > self.row_tokens
        if long and self.drop and answered:
            return Encoded([], {DROPPED: 1})
        pair = texts[1] if len(texts) > 1 else None
        columns = tokens_of(self.tokenizer, texts[0], pair, self.row_tokens) if long else whole
        label = self._label(record) if answered else np.zeros(0)
        document = Document({**columns, "label": label}, len(columns["tokens"]))
        return Encoded([document], {TRUNCATED: 1} if long else {})

    def _label(self, record: Record) -> np.ndarray[Any, Any]:
        if self.kind == "regression":
            return np.array([number_of(record, self.fields)], np.float32)
        names = label_names(record, self.kind, self.fields)
        places = {label: place for place, label in enumerate(self.labels)}
        found = [place_of(name, places) for name in names]
        for name, place in zip(names, found, strict=True):
            if place is None:
                raise UserError(
                    f"{record.where}: label {name!r} is not one of this run's: {', '.join(self.labels[:20])}; "
                    "correct it, or name all labels in task.labels"
                )
        if self.kind == "single":
            return np.array(found, np.int32)
        return np.array([float(place in found) for place in range(len(self.labels))], np.float32)


class Classification:
    """The task for any sequence classification model of transformers."""

    counted = (SEQUENCES,)

    def __init__(self, kind: str, labels: tuple[str, ...], inputs: Inputs) -> None:
        self._kind, self._labels, self.inputs = kind, labels, inputs

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> Padded:
        return self.inputs.padded(rows, device)

    def counts(self, batch: Padded) -> dict[str, int]:
        return {SEQUENCES: len(batch)}

    def foreseen(self, census: Census) -> dict[str, int]:
        return {SEQUENCES: census.documents}

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        return mean(counts)

    def loss(self, model: Any, batch: Padded) -> dict[str, torch.Tensor]:
        return {SEQUENCES: self._losses(self._logits(model, batch), batch).sum()}

    def _logits(self, model: Any, batch: Padded) -> torch.Tensor:
        """fp32 [documents, outputs]; no row where there are none, but the same graph."""
        logits: torch.Tensor = model(**self.inputs(batch)).logits
        return logits.float()[: len(batch)]

    def _losses(self, logits: torch.Tensor, batch: Padded) -> torch.Tensor:
        """fp32 [documents]. Of several labels the mean over the labels, as transformers has it."""
        targets = column(batch.documents, "label", logits.device)
        if self._kind == "single":
            return functional.cross_entropy(logits, targets.long(), reduction="none")
        targets = targets.view(logits.shape).to(logits.dtype)
        if self._kind == "regression":
            return functional.mse_loss(logits, targets, reduction="none").mean(-1)
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)

    def predict(self, model: Any, batch: Padded) -> list[Outcome]:
        """`output`: probabilities of the labels, or the number; `label`: what is right, where it is known."""
        logits = self._logits(model, batch)
        known = len(batch) > 0 and len(batch.documents[0]["label"]) > 0
        losses = self._losses(logits, batch).tolist() if known else []
        if self._kind != "regression":
            logits = logits.softmax(-1) if self._kind == "single" else logits.sigmoid()
        outcomes: list[Outcome] = [{"output": output} for output in logits.tolist()]
        for outcome, document, loss in zip(outcomes, batch.documents, losses, strict=False):
            outcome.update(label=document["label"].tolist(), loss=loss, targets=1)
        return outcomes

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        outputs = [outcome["output"] for outcome in outcomes]
        if self._kind == "regression":
            return score_numbers([outcome["label"][0] for outcome in outcomes], [output[0] for output in outputs])
        predicted = [self._chosen(output) for output in outputs]
        if self._kind == "single":
            truth = [self._labels[outcome["label"][0]] for outcome in outcomes]
            return score_one_label(truth, [chosen[0] for chosen in predicted], outputs, self._labels)
        several = [[self._labels[i] for i, there in enumerate(o["label"]) if there] for o in outcomes]
        return score_many_labels(several, predicted, outputs, self._labels)

    def _chosen(self, output: Sequence[float]) -> list[str]:
        if self._kind == "single":
            return [self._labels[max(range(len(output)), key=output.__getitem__)]]
        return [label for label, value in zip(self._labels, output, strict=True) if value > 0.5]

    def join(self, parts: Sequence[Outcome]) -> Outcome:
        return only(parts)

    def answer(self, outcome: Outcome) -> Outcome:
        output = outcome["output"]
        if self._kind == "regression":
            return {"value": output[0]}
        chosen = self._chosen(output)
        shares = dict(zip(self._labels, output, strict=True))
        return {"label": chosen[0] if self._kind == "single" else chosen, "scores": shares}
