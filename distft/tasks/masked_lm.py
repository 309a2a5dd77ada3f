"""Task masked-lm: predict hidden tokens from both sides (Devlin et al. 2018, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from distft.data.formats import text_of
from distft.data.order import hashes
from distft.data.pieces import MANY, Whole, places_of
from distft.data.records import Column, Document, Encoded, Record, each
from distft.errors import UserError
from distft.metrics.scores import Report
from distft.recipe.tasks import MaskedLM
from distft.run.digest import of_parts
from distft.tasks.protocol import Each, ModelSpec, Outcome, Setting, TaskSpec, mean
from distft.tasks.shared.chunked_head import Call, ChunkedHead
from distft.tasks.shared.lengths import Lengths
from distft.tasks.shared.padding import COLUMNS, DROPPED, SPLIT, TRUNCATED, Inputs, Padded, digest_of
from distft.tasks.shared.token_scores import (
    add_outcomes,
    perplexity,
    report_token_scores,
    score_tokens,
    scores_of,
    sum_and_each,
)
from distft.tasks.shared.tokenizer_family import ENCODER

TOKENS = "tokens"
_SPECIAL = 2  # tokens around each piece of a text


def spec(settings: MaskedLM, fields: Mapping[str, str]) -> TaskSpec:
    def encoder(setting: Setting) -> MaskedEncoder:
        tokenizer, data = setting.processor(), setting.recipe.data
        if tokenizer.mask_token_id is None or tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise UserError("task: masked-lm needs a tokenizer with the tokens cls, sep and mask; this one lacks some")
        return MaskedEncoder(tokenizer, settings.mask, fields, data.row_tokens, data.overlong or "split")

    def build(setting: Setting, model: Any) -> Masked:
        return Masked(settings.mask, Inputs(model, setting.processor()))

    model = ModelSpec("AutoModelForMaskedLM", ENCODER, tells_documents=True)
    return TaskSpec(
        model,
        lambda record: [text_of(record, "text", fields)],
        encoder,
        build,
        cut=lambda data: MaskedCut(data.row_tokens, data.overlong or "split", settings.mask),
    )


@dataclass(frozen=True)
class MaskedCut:
    """Cuts what stands between the first and the last token of a document, which each piece keeps."""

    row_tokens: int
    overlong: str
    share: float

    @property
    def note(self) -> str:
        return {"split": SPLIT, "truncate": TRUNCATED, "drop": DROPPED}[self.overlong]

    def pieces(self, whole: Whole) -> npt.NDArray[Any]:
        most = np.where(whole.sizes <= self.row_tokens, 1, {"split": MANY, "truncate": 1, "drop": 0}[self.overlong])
        found = places_of(whole.sizes - _SPECIAL, self.row_tokens - _SPECIAL, most)
        found["targets"] = np.maximum(1, np.rint(self.share * found["size"]))
        found["size"] += _SPECIAL
        return found

    def columns(self, document: Document, begin: int, size: int) -> Mapping[str, Column]:
        def part(name: str) -> Column:
            values = document[name]
            return np.concatenate([values[:1], values[begin + 1 : begin + size - 1], values[-1:]])

        cut = {name: part(name) for name in ("tokens", "special")}
        return {**cut, "types": document["types"][:size], "mask": document["mask"]}


@dataclass(frozen=True)
class MaskedEncoder:
    """Texts as tokens; those longer than a row become several documents. `row_tokens` None: they stay whole."""

    tokenizer: Any
    share: float
    fields: Mapping[str, str]
    row_tokens: int | None
    overlong: str

    columns = {**COLUMNS, "special": "bool", "mask": "int32"}  # noqa: RUF012 - a constant of the class

    @cached_property
    def digest(self) -> str:
        parts = [self.share, sorted(self.fields.items()), self.row_tokens, self.overlong]
        return of_parts("masked-lm", digest_of(self.tokenizer), *parts)

    @property
    def uncut(self) -> MaskedEncoder:
        return replace(self, row_tokens=None, overlong="split")

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        text = text_of(record, "text", self.fields)
        return self._encoded(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_many(self, records: Sequence[Record]) -> list[Encoded | UserError]:
        texts = each(records, lambda record: text_of(record, "text", self.fields))
        good = [text for text in texts if isinstance(text, str)]
        found = self.tokenizer(good, add_special_tokens=False, verbose=False)["input_ids"] if good else []
        tokens = iter(found)
        return [text if isinstance(text, UserError) else self._encoded(next(tokens)) for text in texts]

    def _encoded(self, tokens: list[int]) -> Encoded:
        """Of the tokens of a text."""
        if not tokens:
            return Encoded([], {"without any token were dropped": 1})
        room = len(tokens) if self.row_tokens is None else self.row_tokens - _SPECIAL
        long = len(tokens) > room
        if long and self.overlong == "drop":
            return Encoded([], {DROPPED: 1})
        pieces = [tokens[begin : begin + room] for begin in range(0, len(tokens), room)]
        if self.overlong == "truncate":
            return Encoded([self._document(pieces[0])], {TRUNCATED: 1} if long else {})
        return Encoded([self._document(piece) for piece in pieces], {SPLIT: 1} if long else {})

    def _document(self, piece: list[int]) -> Document:
        tokens = np.array([self.tokenizer.cls_token_id, *piece, self.tokenizer.sep_token_id], np.int32)
        columns: dict[str, Column] = {
            "tokens": tokens,
            "types": np.zeros(len(tokens), np.uint8),
            "special": np.isin(tokens, self.tokenizer.all_special_ids),
            "mask": np.array([self.tokenizer.mask_token_id, len(self.tokenizer)], np.int32),
        }
        return Document(columns, len(tokens), max(1, round(self.share * len(piece))))


@dataclass(frozen=True)
class MaskedBatch:
    """Attributes:
    padded: with some tokens hidden.
    at: int64 [N], where the targets are in the flattened [B * T]; `targets` int64 [N] what was there.
    owners: int64 [N], the document a target is of.
    """

    padded: Padded
    at: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor

    @property
    def useful_tokens(self) -> int:
        return self.padded.useful_tokens

    @property
    def lengths(self) -> Lengths:
        return self.padded.lengths


class Masked:
    counted = (TOKENS,)

    def __init__(self, share: float, inputs: Inputs) -> None:
        self._share, self.inputs = share, inputs
        self.head: ChunkedHead | None = None

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> MaskedBatch:
        batch = self.inputs.padded(rows, device)
        width = batch.input_ids.shape[1]
        at, targets, shown, owners = [], [], [], []
        for index, document in enumerate(batch.documents):
            chosen, seen = hidden(document, self._share)
            at.append(index * width + chosen)
            targets.append(np.asarray(document["tokens"])[chosen].astype(np.int64))
            shown.append(seen)
            owners.append(np.full(len(chosen), index))
        place, target, see, owner = (
            torch.from_numpy(np.concatenate(arrays) if arrays else np.zeros(0, np.int64)).to(device)
            for arrays in (at, targets, shown, owners)
        )
        batch.input_ids.view(-1)[place] = see
        return MaskedBatch(batch, place, target, owner)

    def counts(self, batch: MaskedBatch) -> dict[str, int]:
        return {TOKENS: len(batch.targets)}

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        return mean(counts)

    def _logits(self, model: Any, batch: MaskedBatch) -> torch.Tensor:
        """fp32 [N, vocabulary]."""
        logits: torch.Tensor = model(**self.inputs(batch.padded)).logits
        return logits.flatten(0, 1)[batch.at].float()

    def _call(self, model: Any, batch: MaskedBatch) -> Call:
        return Call(lambda: model(**self.inputs(batch.padded)), batch.at, batch.targets)

    def few(self, model: Any, vocabulary: int, device: torch.device) -> Call:
        columns: dict[str, Column] = {
            "tokens": (np.arange(3, 9) % vocabulary).astype(np.int32),
            "types": np.zeros(6, np.uint8),
            "special": np.zeros(6, bool),
            "mask": np.array([0, vocabulary], np.int32),
        }
        return self._call(model, self.collate([[Document(columns, 6)]], device))

    def loss(self, model: Any, batch: MaskedBatch) -> dict[str, torch.Tensor]:
        if self.head is not None:
            return self.loss_and_each(model, batch)[0]
        return {TOKENS: functional.cross_entropy(self._logits(model, batch), batch.targets, reduction="sum")}

    def loss_and_each(self, model: Any, batch: MaskedBatch) -> tuple[dict[str, torch.Tensor], Each]:
        if self.head is not None:
            output, each = self.head.sum_and_each(self._call(model, batch))
            return {TOKENS: output.loss}, Each(each, batch.owners)
        total, each = sum_and_each(self._logits(model, batch), batch.targets)
        return {TOKENS: total}, Each(each, batch.owners)

    def predict(self, model: Any, batch: MaskedBatch) -> list[Outcome]:
        if self.head is not None:
            scores = self.head.scores(self._call(model, batch))
        else:
            scores = scores_of(self._logits(model, batch), batch.targets)
        return score_tokens(scores, batch.owners, len(batch.padded))

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        return report_token_scores(outcomes)

    def join(self, parts: Sequence[Outcome]) -> Outcome:
        return add_outcomes(parts)

    def answer(self, outcome: Outcome) -> Outcome:
        """The pseudo-perplexity of a text, of the tokens that were hidden in it."""
        return {**outcome, "perplexity": perplexity(outcome["loss"], outcome["targets"])}


def hidden(document: Document, share: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Which tokens are to be predicted, int64 [n], and what the model sees there, int64 [n].

    Of the chosen 80 % are shown as the mask, 10 % as any token, 10 % as they are. At least one is chosen.
    """
    candidates = np.flatnonzero(~np.asarray(document["special"]))
    if not len(candidates):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    number = max(1, round(share * len(candidates)))
    chosen = np.sort(candidates[np.argsort(hashes(document.draw, 0, len(candidates)), kind="stable")[:number]])
    way = hashes(document.draw, 1, number) / 2.0**64
    tokens = np.asarray(document["tokens"])[chosen].astype(np.int64)
    mask, vocabulary = map(int, document["mask"])
    anything = hashes(document.draw, 2, number) % np.array([vocabulary], np.uint64)
    seen = np.where(way < 0.8, mask, np.where(way < 0.9, anything.astype(np.int64), tokens))
    return chosen, seen.astype(np.int64)
