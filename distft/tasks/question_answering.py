"""Task question-answering: find the answer span in a context (Devlin et al. 2018, section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from distft.data.answers import answers_of, placed, written
from distft.data.loader import Census
from distft.data.records import Column, Document, Encoded, Record
from distft.errors import UserError
from distft.metrics.scores import Report, score_answers
from distft.recipe.tasks import QuestionAnswering
from distft.run.digest import of_parts
from distft.tasks.protocol import ModelSpec, Outcome, Setting, TaskSpec, mean, named
from distft.tasks.shared.padding import COLUMNS, SPLIT, Inputs, Padded, column, digest_of, pack_json, unpack_json
from distft.tasks.shared.tokenizer_family import ENCODER

SPANS = "spans"
QUESTION_CUT = "with a question longer than half a row, which was cut"
UNHELD = "with an answer that no window holds whole"
MISPLACED = "with answers beside the first that are not where answer_start says"


def spec(settings: QuestionAnswering, fields: Mapping[str, str]) -> TaskSpec:
    def encoder(setting: Setting) -> AnsweringEncoder:
        row_tokens = setting.recipe.data.row_tokens
        return AnsweringEncoder(setting.processor(), fields, row_tokens, settings.stride, settings.unanswerable)

    def build(setting: Setting, model: Any) -> Answering:
        return Answering(settings, Inputs(model, setting.processor()))

    return TaskSpec(
        # PeftModelForQuestionAnswering (0.21) takes token_type_ids and does not hand them on, so PEFT is told no type;
        # a classifier that is taken for a base has other labels
        ModelSpec(
            "AutoModelForQuestionAnswering",
            ENCODER,
            tells_documents=True,
            trains_head=True,
            head=lambda labels: named(("start", "end")),
        ),
        lambda record: [written(record, name, fields) for name in ("context", "question")],
        encoder,
        build,
    )


@dataclass(frozen=True)
class AnsweringEncoder:
    """A question and its context as windows over the context, a document each.

    Columns beside `COLUMNS`: `context`, first and one-past-last token of the context; `offsets`, first and
    one-past-last character of each of these tokens without blanks around it; `span`, first and last token of the
    answer, both 0 if this window does not hold it, empty if it is not known; `about`, JSON: {"context": text,
    "answers": the accepted texts, null if not known} in the first window of a record and null in the others.

    Raises:
        UserError: windows so small could not move on.
    """

    tokenizer: Any
    fields: Mapping[str, str]
    row_tokens: int
    stride: int
    unanswerable: bool

    columns = {**COLUMNS, "span": "int32", "context": "int32", "offsets": "int32", "about": "uint8"}  # noqa: RUF012

    def __post_init__(self) -> None:
        room = self.row_tokens - self._half - self.tokenizer.num_special_tokens_to_add(pair=True)
        if self.stride >= room:
            raise UserError(
                f"task.stride {self.stride} is too large for data.row_tokens {self.row_tokens}: with a question of "
                f"half a row, {max(0, room)} tokens are left for the context, and windows must overlap by fewer; "
                "lower task.stride or raise data.row_tokens"
            )

    @property
    def _half(self) -> int:
        return self.row_tokens // 2

    @cached_property
    def digest(self) -> str:
        parts = [sorted(self.fields.items()), self.row_tokens, self.stride, self.unanswerable]
        return of_parts("question-answering 2", digest_of(self.tokenizer), *parts)

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        question, context = (written(record, name, self.fields) for name in ("question", "context"))
        answers = answers_of(record, self.fields) if answered else None
        if answers == [] and not self.unanswerable:
            raise UserError(f"{record.where} has no answer; set task.unanswerable=true, or leave the record out")
        asked = self._shortened(question, context)
        windows = self._windows(asked, context)
        spans = [np.zeros(2 if answered else 0, np.int32)] * len(windows)
        misplaced = False
        if answers:
            begin, end, misplaced = placed(record, context, answers)
            spans = spans_of(windows, begin, end)
        texts = None if answers is None else [answer.text for answer in answers]
        abouts = [pack_json({"context": context, "answers": texts}), *[pack_json(None)] * (len(windows) - 1)]
        unheld = bool(answers) and not any(span.any() for span in spans)
        notes = {SPLIT: len(windows) > 1, QUESTION_CUT: asked != question, UNHELD: unheld, MISPLACED: misplaced}
        documents = [
            Document({**window, "span": span, "about": about}, len(window["tokens"]))
            for window, span, about in zip(windows, spans, abouts, strict=True)
        ]
        return Encoded(documents, {note: 1 for note, there in notes.items() if there})

    def _shortened(self, question: str, context: str) -> str:
        """The question, cut to half a row where it is longer and does not fit beside the whole context."""
        ends = [end for _, end in self._alone(question)]
        if len(ends) <= self._half or self._fits(question, context):
            return question
        # A character that is several tokens is kept whole, so that a cut may be some tokens too long.
        cuts = (question[:end] for end in reversed(ends[: self._half]))
        return next((cut for cut in cuts if len(self._alone(cut)) <= self._half), "")

    def _fits(self, question: str, context: str) -> bool:
        return len(self.tokenizer(question, context, verbose=False)["input_ids"]) <= self.row_tokens

    def _alone(self, text: str) -> list[tuple[int, int]]:
        """First and one-past-last character of each token."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets: list[tuple[int, int]] = found["offset_mapping"]
        return offsets

    def _windows(self, question: str, context: str) -> list[dict[str, Column]]:
        found = self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=self.row_tokens,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
            verbose=False,
        )
        windows: list[dict[str, Column]] = []
        for index, tokens in enumerate(found["input_ids"]):
            at = [place for place, text in enumerate(found.sequence_ids(index)) if text == 1]
            offsets = [_bare(context, *found["offset_mapping"][index][place]) for place in at]
            columns: dict[str, Column] = {
                "tokens": np.array(tokens, np.int32),
                "types": np.array(found["token_type_ids"][index], np.uint8),
                "context": np.array([at[0], at[-1] + 1] if at else [0, 0], np.int32),
                "offsets": np.array(offsets, np.int32).reshape(-1),
            }
            windows.append(columns)
        return windows


def _bare(text: str, begin: int, end: int) -> tuple[int, int]:
    """A range of characters without the blanks around it, which some tokenizers count as part of a token."""
    piece = text[begin:end]
    begin += len(piece) - len(piece.lstrip())
    return begin, begin + len(piece.strip())


def spans_of(windows: Sequence[Mapping[str, Column]], begin: int, end: int) -> list[Column]:
    """int32 [2] each: first and last token of the characters from `begin` to before `end`.

    Windows that do not hold all of them have [0, 0], the first token of all ([CLS]), as by Devlin et al.
    """
    found = []
    for window in windows:
        starts, ends = window["offsets"][::2], window["offsets"][1::2]
        at = np.flatnonzero((ends > begin) & (starts < end))
        found.append((starts[at[0]], ends[at[-1]], at[[0, -1]] + window["context"][0]) if len(at) else None)
    first = min((part[0] for part in found if part), default=0)
    last = max((part[1] for part in found if part), default=0)
    whole = [part is not None and part[:2] == (first, last) for part in found]
    return [np.array(part[2] if part and held else [0, 0], np.int32) for part, held in zip(found, whole, strict=True)]


class Answering:
    """The task for any question answering model of transformers that scores where an answer starts and ends."""

    counted = (SPANS,)

    def __init__(self, settings: QuestionAnswering, inputs: Inputs) -> None:
        self._settings, self.inputs = settings, inputs

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> Padded:
        return self.inputs.padded(rows, device)

    def counts(self, batch: Padded) -> dict[str, int]:
        return {SPANS: len(batch)}

    def foreseen(self, census: Census) -> dict[str, int]:
        return {SPANS: census.documents}

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        return mean(counts)

    def loss(self, model: Any, batch: Padded) -> dict[str, torch.Tensor]:
        return {SPANS: self._losses(*self._logits(model, batch), batch).sum()}

    def _logits(self, model: Any, batch: Padded) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the start and of the end, fp32 [documents, T] each; -inf at padding, which transformers lets compete."""
        out = model(**self.inputs(batch))
        start, end = (
            logits.float().masked_fill(batch.attention_mask == 0, -torch.inf)[: len(batch)]
            for logits in (out.start_logits, out.end_logits)
        )
        return start, end

    def _losses(self, start: torch.Tensor, end: torch.Tensor, batch: Padded) -> torch.Tensor:
        """fp32 [documents]: the mean of the cross-entropies of start and end, as transformers has it."""
        targets = column(batch.documents, "span", start.device).long().view(len(batch), 2)
        losses = [functional.cross_entropy(start, targets[:, 0], reduction="none")]
        losses += [functional.cross_entropy(end, targets[:, 1], reduction="none")]
        return (losses[0] + losses[1]) / 2

    def predict(self, model: Any, batch: Padded) -> list[Outcome]:
        """`best`: score, probability, first and one-past-last character of the best span; null where there is none.
        `none`: score and probability of no answer in this window. `about`: the column of this name.

        A score is the sum of two logits. Probabilities are over all spans in the window and no answer.
        """
        start, end = self._logits(model, batch)
        known = len(batch) > 0 and len(batch.documents[0]["span"]) > 0
        losses = self._losses(start, end, batch).tolist() if known else []
        none = start[:, 0] + end[:, 0]
        pairs = self._pairs(start, end, allowed(batch).to(start.device))
        best, at = pairs.flatten(1).max(-1)
        total = torch.logaddexp(pairs.flatten(1).logsumexp(-1), none)
        first = at // pairs.shape[-1]
        last = first + at % pairs.shape[-1]
        scored = torch.stack([best, (best - total).exp(), none, (none - total).exp()], 1).tolist()
        outcomes: list[Outcome] = []
        for document, numbers, *span in zip(batch.documents, scored, first.tolist(), last.tolist(), strict=True):
            context, offsets = document["context"], document["offsets"].reshape(-1, 2)
            there = numbers[0] > -torch.inf
            place = [int(offsets[token - context[0], side]) for side, token in enumerate(span)] if there else []
            found = [*numbers[:2], *place] if there else None
            outcomes.append({"best": found, "none": numbers[2:], "about": unpack_json(document["about"])})
        for outcome, loss in zip(outcomes, losses, strict=False):
            outcome.update(loss=loss, targets=1)
        return outcomes

    def _pairs(self, start: torch.Tensor, end: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Scores of all spans, fp32 [documents, T, longest answer], by first token and length - 1.

        Args:
            inside: bool [documents, T], where a span may start and end.
        """
        longest = min(self._settings.longest_answer, start.shape[1])
        start, end = (logits.masked_fill(~inside, -torch.inf) for logits in (start, end))
        ends = functional.pad(end, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
        return start.unsqueeze(-1) + ends

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        truth = [outcome["about"]["answers"] for outcome in outcomes]
        return score_answers(truth, [self.answer(outcome)["answer"] for outcome in outcomes])

    def join(self, parts: Sequence[Outcome]) -> Outcome:
        """The best of all windows. That there is no answer is believed only as far as the most doubtful one says so."""
        best = max((part["best"] for part in parts if part["best"]), default=None)
        joined = {"best": best, "none": min(part["none"] for part in parts), "about": parts[0]["about"]}
        if "loss" in parts[0]:
            joined.update({key: sum(part[key] for part in parts) for key in ("loss", "targets")})
        return joined

    def answer(self, outcome: Outcome) -> Outcome:
        """An answer with its place in the context; "" where the context holds none."""
        best, none = outcome["best"], outcome["none"]
        if best is None or (self._settings.unanswerable and none[0] > best[0]):
            return {"answer": "", "score": none[1], "start": None, "end": None}
        _, probability, start, end = best
        return {"answer": outcome["about"]["context"][start:end], "score": probability, "start": start, "end": end}


def allowed(batch: Padded) -> torch.Tensor:
    """bool [documents, T]: tokens of the context that are not blank."""
    inside = np.zeros((len(batch), batch.input_ids.shape[1]), bool)
    for row, document in zip(inside, batch.documents, strict=True):
        first, end = document["context"]
        row[first:end] = document["offsets"][1::2] > document["offsets"][::2]
    return torch.from_numpy(inside)
