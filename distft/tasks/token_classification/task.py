"""The token-classification task: model head, loss and scores, with or without a CRF."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from distft.data.loader import Census
from distft.data.records import Document
from distft.data.words import Word, between, word_text
from distft.errors import UserError
from distft.metrics.scores import Report, scheme_of, score_tags
from distft.metrics.tag_schemes import OUTSIDE, SCHEMES, recognise, strays
from distft.recipe.tasks import TokenClassification
from distft.tasks.protocol import Labels, LabelSpec, ModelSpec, Outcome, Setting, TaskSpec, mean, named
from distft.tasks.shared.generation import unwrapped
from distft.tasks.shared.lengths import Lengths
from distft.tasks.shared.padding import Inputs, Padded, unpack_json
from distft.tasks.shared.tokenizer_family import ENCODER
from distft.tasks.token_classification.crf import (
    CRF,
    FORBIDDEN,
    Scores,
    allowed_transitions,
    constrained,
    decode,
    log_likelihood,
    marginals,
)
from distft.tasks.token_classification.encoder import TaggingEncoder
from distft.tasks.token_classification.sentences import TAGS, read, tag_names

FIRST, INNER, LAST = frozenset("BSU"), frozenset("IEL"), frozenset("ELSU")  # prefixes of tags by place in an entity


def spec(settings: TokenClassification, fields: Mapping[str, str]) -> TaskSpec:
    def extend(model: Any, labels: Labels) -> None:
        if settings.crf:
            model.crf = CRF(len(labels))

    def encoder(setting: Setting) -> TaggingEncoder:
        data, labels = setting.recipe.data, tuple(setting.labels)
        overlong = data.overlong or "split"
        meanings = meanings_of(labels, settings)
        return TaggingEncoder(
            setting.processor(), settings.crf, labels, fields, data.row_tokens, overlong, meanings, settings.words
        )

    def build(setting: Setting, model: Any) -> Tagging:
        labels = tuple(setting.labels)
        return Tagging(labels, settings.crf, Inputs(model, setting.processor()), meanings_of(labels, settings))

    return TaskSpec(
        ModelSpec(
            "AutoModelForTokenClassification",
            ENCODER,
            peft_task="TOKEN_CLS",
            tells_documents=True,
            trains_head=True,
            head=named,
            extend=extend,
        ),
        lambda record: [" ".join(read(record, fields, answered=False).texts)],
        encoder,
        build,
        labels=LabelSpec(
            lambda record: tag_names(record, fields, settings.words),
            check=partial(check_scheme, settings=settings),
            describe=partial(describe_scheme, settings=settings),
        ),
    )


def meanings_of(labels: tuple[str, ...], settings: TokenClassification) -> tuple[str, ...]:
    """Each label as its scheme means it: B-X, I-X, E-X, S-X, L-X, U-X or O; as it is where there is no scheme."""
    scheme = recognise(labels, settings.scheme)
    return labels if scheme is None else tuple(scheme.plain(labels))


def check_scheme(seen: Mapping[str, str], settings: TokenClassification) -> None:
    """Raises UserError if a tag is not of the scheme of all others, or of the one that the recipe names."""
    labels, wanted = list(seen), settings.scheme
    if wanted == "auto" and (found := strays(labels)) is not None:
        scheme, odd = found
        raise UserError(
            f"{seen[odd[0]]}: tag {odd[0]!r} is not of the scheme of the others, {scheme.name} ({scheme.form}); "
            "correct it, or set task.scheme to none to score each word by itself"
        )
    if wanted in SCHEMES and recognise(labels, wanted) is None:
        odd = [label for label in labels if recognise([label, OUTSIDE], wanted) is None] or labels
        raise UserError(f"{seen[odd[0]]}: tag {odd[0]!r} is not of task.scheme {wanted}; correct it, or set it to auto")


def describe_scheme(labels: Labels, settings: TokenClassification) -> str:
    scheme = recognise(labels, settings.scheme)
    if scheme is None:
        return "tags: they mark no entities (task.scheme), so each word is scored by itself"
    return f"tags: {scheme.name}, as in {scheme.form} (task.scheme); scores are of entities"


@dataclass(frozen=True)
class TaggingBatch:
    """B documents of at most W words.

    Attributes:
        padded: their tokens, [B, T].
        starts: int64 [B, W], where in T each word's first token is; 0 where there is none.
        seen: bool [B, W]: words that have tokens.
        chain: bool [B, W]: all words up to the last one seen, which the CRF goes along.
        edges: bool [B, 2]: the chain begins, and ends, with its sentence.
        tags: int64 [B, W].
    """

    padded: Padded
    starts: torch.Tensor
    seen: torch.Tensor
    chain: torch.Tensor
    edges: torch.Tensor
    tags: torch.Tensor

    @property
    def useful_tokens(self) -> int:
        return self.padded.useful_tokens

    @property
    def lengths(self) -> Lengths:
        return self.padded.lengths


class Tagging:
    """The task for any token classification model of transformers.

    The loss is the negative log-likelihood of the tags, and its count the words that have tokens: with a CRF too, where
    it is that of whole sequences, so that a learning rate means the same with and without.

    A word without tokens (lone control characters, or what is truncated) gets "O", or the first label where there is no
    "O", at a confidence of 0. For the CRF it is a word like others that nothing is known of; in decoding its tag is
    given. Constraints of the labels' scheme hold wherever there is a CRF, and nowhere else. Those on the first and the
    last tag of a sentence are lifted in the loss where it was cut, for that may be inside an entity; in decoding they
    hold there as well, so that what is joined is without fault.
    """

    counted = (TAGS,)

    def __init__(
        self, labels: tuple[str, ...], crf: bool, inputs: Inputs, meanings: tuple[str, ...] | None = None
    ) -> None:
        self._labels, self.inputs = labels, inputs
        self._meanings = meanings = meanings or labels
        self._allowed = allowed_transitions(meanings) if crf else None
        self._default = meanings.index(OUTSIDE) if OUTSIDE in meanings else 0
        self._scheme = scheme_of(meanings)

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> TaggingBatch:
        batch = self.inputs.padded(rows, device)
        shape = (max(1, len(batch)), max([1, *(len(document["starts"]) for document in batch.documents)]))
        starts, tags, edges = np.full(shape, -1, np.int64), np.zeros(shape, np.int64), np.ones((shape[0], 2), bool)
        for row, document in enumerate(batch.documents):
            starts[row, : len(document["starts"])] = document["starts"]
            tags[row, : len(document[TAGS])] = document[TAGS]
            edges[row] = document["edges"]
        seen = starts >= 0
        chain = np.logical_or.accumulate(seen[:, ::-1], 1)[:, ::-1].copy()
        arrays = (starts.clip(0), seen, chain, edges, tags)
        return TaggingBatch(batch, *(torch.from_numpy(array).to(device) for array in arrays))

    def counts(self, batch: TaggingBatch) -> dict[str, int]:
        return {TAGS: sum(document.targets for document in batch.padded.documents)}

    def foreseen(self, census: Census) -> dict[str, int]:
        return {TAGS: census.targets}

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        return mean(counts)

    def loss(self, model: Any, batch: TaggingBatch) -> dict[str, torch.Tensor]:
        return {TAGS: self._losses(*self._outputs(model, batch), batch).sum()}

    def _outputs(self, model: Any, batch: TaggingBatch) -> tuple[torch.Tensor, Scores | None]:
        """fp32 [B, W, L], zero for words not seen; and what a CRF adds to them."""
        logits: torch.Tensor = model(**self.inputs(batch.padded)).logits
        emissions = logits.gather(1, batch.starts[..., None].expand(-1, -1, logits.shape[-1])).float()
        scores = crf_of(model)() if self._allowed is not None else None
        return emissions.masked_fill(~batch.seen[..., None], 0.0), scores

    def _losses(self, emissions: torch.Tensor, scores: Scores | None, batch: TaggingBatch) -> torch.Tensor:
        """fp32 [B]: the negative log-likelihood of each document's tags; 0 for padding."""
        if scores is None:
            tags = batch.tags.masked_fill(~batch.seen, -100)  # what cross_entropy ignores
            return functional.cross_entropy(emissions.transpose(1, 2), tags, reduction="none").sum(1)
        return -log_likelihood(*self._within(emissions, scores, batch), batch.tags, batch.chain)

    def _within(self, emissions: torch.Tensor, scores: Scores, batch: TaggingBatch) -> tuple[Scores, torch.Tensor]:
        """Scores and emissions with the constraints that hold for each document, cut or not."""
        assert self._allowed is not None
        start, end = self._allowed.start.to(emissions.device), self._allowed.end.to(emissions.device)
        first, last = torch.zeros_like(batch.chain), batch.chain & ~functional.pad(batch.chain[:, 1:], (0, 1))
        first[:, 0] = True
        begins, ends = (torch.stack([first, last]) & batch.edges.T[..., None])[..., None]  # [B, W, 1] each
        free = replace(self._allowed, start=torch.ones_like(start), end=torch.ones_like(end))
        return constrained(scores, free), emissions.masked_fill(begins & ~start | ends & ~end, FORBIDDEN)

    def predict(self, model: Any, batch: TaggingBatch) -> list[Outcome]:
        """`tags` and how probable they are, `scores`: by softmax, or the CRF's marginals; `gold`: what is right."""
        emissions, scores = self._outputs(model, batch)
        tags, confidences = (found.tolist() for found in self._decoded(emissions, scores, batch))
        known = any(len(document[TAGS]) for document in batch.padded.documents)
        losses = self._losses(emissions, scores, batch).tolist() if known else []
        outcomes: list[Outcome] = []
        for row, document in enumerate(batch.padded.documents):
            n = len(document["starts"])
            found = {TAGS: tags[row][:n], "scores": confidences[row][:n], "words": unpack_json(document["words"])}
            if len(document[TAGS]):
                found.update(gold=document[TAGS].tolist(), loss=losses[row], targets=document.targets)
            outcomes.append(found)
        return outcomes

    def _decoded(
        self, emissions: torch.Tensor, scores: Scores | None, batch: TaggingBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best tags, int64 [B, W], and how probable they are, fp32 [B, W]."""
        if scores is None:
            shares, best = emissions.softmax(-1), emissions.argmax(-1)
        else:
            others = torch.arange(len(self._labels), device=emissions.device) != self._default
            given = (batch.chain & ~batch.seen)[..., None]
            emissions, scores = emissions.masked_fill(given & others, FORBIDDEN), constrained(scores, self._allowed)
            shares, width = marginals(scores, emissions, batch.chain), emissions.shape[1]
            paths = decode(scores, emissions, batch.chain)
            best = torch.tensor([path + [0] * (width - len(path)) for path in paths], device=emissions.device)
        best = best.masked_fill(~batch.seen, self._default)
        return best, shares.gather(-1, best[..., None]).squeeze(-1) * batch.seen

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        truth, predicted = ([self._meant(outcome[side]) for outcome in outcomes] for side in ("gold", TAGS))
        return score_tags(truth, predicted, self._meanings)

    def _meant(self, tags: Sequence[int]) -> list[str]:
        return [self._meanings[tag] for tag in tags]

    def join(self, parts: Sequence[Outcome]) -> Outcome:
        """The pieces of a sentence that was longer than a row: lists one behind the other, and sums."""
        return {key: reduce(add, [part[key] for part in parts]) for key in parts[0]}

    def answer(self, outcome: Outcome) -> Outcome:
        """A tag for each of the `words`; `entities` where the tags mark some: their places count words if those were
        given, and characters if a text was."""
        tags, words = [self._labels[tag] for tag in outcome[TAGS]], outcome["words"]
        found: Outcome = {TAGS: tags, "scores": outcome["scores"], "words": list(map(word_text, words))}
        if self._scheme is not None:
            place = _in_words if not words or isinstance(words[0], str) else _in_text
            found["entities"] = [
                {"type": kind, **place(words, start, end)}
                for kind, start, end in entities(self._meant(outcome[TAGS]), whole=self._scheme != "IOB")
            ]
        return found


def _in_words(words: Sequence[str], start: int, end: int) -> Outcome:
    return {"start": start, "end": end, "text": " ".join(words[start:end])}


def _in_text(words: Sequence[Word], start: int, end: int) -> Outcome:
    begin, text = words[start][0], between(words[start:end])
    return {"start": begin, "end": begin + len(text), "text": text}


def crf_of(model: Any) -> Any:
    """The CRF of a model, or PEFT's copy of it, below DeepSpeed's engine. It has to be called: ZeRO-3 shards it."""
    return unwrapped(model).crf


def entities(tags: Sequence[str], whole: bool) -> Iterator[tuple[str, int, int]]:
    """(type, begin, end) of the entities that tags mark, read as `metrics.tags` reads them.

    Args:
        whole: the scheme marks ends too (BIOES, BILOU), and only what is without fault is an entity. Else, as in
            CoNLL's script, I-X begins one itself where it continues none.
    """
    begin: int | None = None
    for index, tag in enumerate([*tags, "O"]):
        if begin is not None:
            first, last = tags[begin], tags[index - 1]
            if tag[:1] in INNER and tag[2:] == first[2:] and last[:1] not in LAST:
                continue
            if not whole or (first[:1] in FIRST and last[:1] in LAST):
                yield first[2:], begin, index
        begin = None if tag[:1] == "O" else index
