"""Encoder-decoder models: teacher forcing in training, beam search in generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional

from distft.data.loader import Census
from distft.data.records import Column, Document
from distft.metrics.scores import Report
from distft.recipe.tasks import Generation
from distft.tasks.protocol import Outcome, mean, only
from distft.tasks.shared.chunked_head import Call, ChunkedHead
from distft.tasks.shared.decoder_targets import UNANSWERED
from distft.tasks.shared.flat_pairs import FlatPair
from distft.tasks.shared.generation import sharded, stops, unwrapped
from distft.tasks.shared.lengths import Lengths
from distft.tasks.shared.model_randomness import masks_from
from distft.tasks.shared.padding import unpack_json

TOKENS, TOKEN_IDS = "tokens", "input_ids"
_IGNORED = -100


@dataclass(frozen=True)
class Wanted:
    """N tokens to predict.

    Attributes:
        at: int64 [N], where their logits are among those of all that the decoder is given.
        places: int64 [N], where they are in the flattened [B * U].
        targets: int64 [N].
    """

    at: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, labels: np.ndarray[Any, Any], pair: FlatPair | None) -> Self:
        """Args: labels: int64 [B, U]."""
        flat = labels.reshape(-1)
        order = np.arange(len(flat)) if pair is None else pair.written.places.numpy()
        at = np.flatnonzero(flat[order] != _IGNORED)
        places = order[at]
        return cls(*(torch.from_numpy(one) for one in (at, places, flat[places])))

    def to(self, device: torch.device) -> Wanted:
        return Wanted(self.at.to(device), self.places.to(device), self.targets.to(device))


@dataclass(frozen=True)
class WritingBatch:
    """B sources and their targets of up to U tokens; B is 1 and nothing is learned where there are no documents.

    Attributes:
        inputs: of the encoder, by the names of the model's arguments.
        decoder_input_ids: int64 [B, U]: the targets, each a place later.
        labels: int64 [B, U], -100 where there is nothing to predict.
        useful_tokens: of the sources, or milliseconds, without padding.
        wanted: the same labels, for a head that is told them.
        flat: the rows in which a model is given them, where it takes them without padding.
    """

    inputs: Mapping[str, torch.Tensor]
    decoder_input_ids: torch.Tensor
    labels: torch.Tensor
    useful_tokens: int
    documents: Sequence[Document]
    wanted: Wanted
    flat: FlatPair | None = None

    @property
    def lengths(self) -> Lengths:
        written = [len(document["labels"]) for document in self.documents]
        return Lengths([document.size for document in self.documents], sum(written), written)


@dataclass(frozen=True)
class Sources:
    """What the encoder is given for some documents.

    Attributes:
        inputs: by the names of the model's arguments.
        useful: tokens, or milliseconds, without padding.
        sizes: tokens of each, if it reads tokens; also of what stands for documents where there are none.
    """

    inputs: Mapping[str, torch.Tensor]
    documents: Sequence[Document]
    useful: int
    sizes: Sequence[int] = ()


class EncoderDecoder:
    """The task for an encoder-decoder of transformers.

    Attributes:
        flat: in training the model is given sources in one row and targets in another, without padding.

    Args:
        prompt: what the decoder is given in any case: its start, and what all targets begin with.
        filler: the token behind targets that have ended.
        read: makes the encoder's inputs from rows of documents.
        score: from what is right and what was written to scores.
    """

    counted = (TOKENS,)

    def __init__(
        self,
        tokenizer: Any,
        settings: Generation,
        prompt: Sequence[int],
        filler: int,
        read: Callable[[Sequence[Sequence[Document]], torch.device], Sources],
        score: Callable[[Sequence[str], Sequence[str]], Report],
        flat: bool = False,
    ) -> None:
        self.flat = flat
        self.head: ChunkedHead | None = None
        self._tokenizer, self._settings = tokenizer, settings
        self._prompt, self._filler = list(prompt), filler
        self._read, self._score = read, score

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> WritingBatch:
        sources = self._read(rows, device)
        documents = sources.documents
        width = max([1, *(len(document["labels"]) for document in documents)])
        labels = np.full((max(1, len(documents)), width), _IGNORED, np.int64)
        given = np.full_like(labels, self._filler)
        given[:, 0] = self._prompt[0]
        for index, document in enumerate(documents):
            written = document["labels"]
            labels[index, : len(written)] = written
            given[index, 1 : len(written)] = written[:-1]
        inputs = {name: tensor.to(device) for name, tensor in sources.inputs.items()}
        taught = torch.from_numpy(given).to(device), torch.from_numpy(labels).to(device)
        pair = None
        if self.flat:
            sizes = [max(1, len(document["labels"])) for document in documents] or [1]
            pair = FlatPair.of(sources.sizes, sizes, (inputs[TOKEN_IDS].shape[1], width))
        wanted = Wanted.of(labels, pair).to(device)
        flat = None if pair is None else pair.to(device)
        return WritingBatch(inputs, *taught, sources.useful, documents, wanted, flat)

    def counts(self, batch: WritingBatch) -> dict[str, int]:
        return {TOKENS: sum(len(document["labels"]) for document in batch.documents)}

    def foreseen(self, census: Census) -> dict[str, int]:
        return {TOKENS: census.targets}

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        return mean(counts)

    def loss(self, model: Any, batch: WritingBatch) -> dict[str, torch.Tensor]:
        with masks_from(batch.documents):
            if self.head is not None:
                return {TOKENS: self.head.sum_of_losses(self._call(model, batch)).loss}
            return {TOKENS: self._losses(model, batch).sum()}

    def _call(self, model: Any, batch: WritingBatch) -> Call:
        return Call(lambda: self._output(model, batch), batch.wanted.at, batch.wanted.targets)

    def few(self, model: Any, vocabulary: int, device: torch.device) -> Call:
        tokens = (np.arange(3, 9) % vocabulary).astype(np.int32)
        read: dict[str, Column] = {"tokens": tokens, "types": np.zeros(6, np.uint8), "samples": np.zeros(400, np.int16)}
        document = Document({**read, **UNANSWERED, "labels": tokens}, len(tokens))
        return self._call(model, self.collate([[document]], device))

    def _losses(self, model: Any, batch: WritingBatch) -> torch.Tensor:
        """fp32 [B, U], 0 where there is nothing to predict. Teacher forcing (Williams and Zipser 1989)."""
        pair, labels = batch.flat, batch.labels
        if self.head is not None:
            found = self.head.scores(self._call(model, batch))[0]
            return found.new_zeros(labels.numel()).index_copy(0, batch.wanted.places, found).view(labels.shape)
        if pair is not None:
            labels = pair.written.flattened(labels, _IGNORED)
        losses = functional.cross_entropy(
            self.logits(model, batch).float().transpose(1, 2), labels, ignore_index=_IGNORED, reduction="none"
        )
        return losses if pair is None else pair.written.laid_out(losses)

    def logits(self, model: Any, batch: WritingBatch) -> torch.Tensor:
        """[B, U, vocabulary], or [1, tokens, vocabulary] of a flat row."""
        logits: torch.Tensor = self._output(model, batch).logits
        return logits

    def _output(self, model: Any, batch: WritingBatch) -> Any:
        inputs, given, pair = in_dtype_of(model, batch.inputs), batch.decoder_input_ids, batch.flat
        if pair is not None:
            inputs = {TOKEN_IDS: pair.read.flattened(inputs[TOKEN_IDS], self._filler), **pair.arguments}
            given = pair.written.flattened(given, self._filler)
        return model(**inputs, decoder_input_ids=given, use_cache=False)

    def predict(self, model: Any, batch: WritingBatch) -> list[Outcome]:
        """`text`: what the model writes; where it is known, `reference`: what is right.

        The loss is computed also where nothing is known: other ranks, with other documents, run the same graph.
        """
        losses = self._losses(model, batch).double().sum(-1).tolist()
        outcomes: list[Outcome] = []
        for document, text, loss in zip(batch.documents, self._written(model, batch), losses, strict=False):
            outcome: Outcome = {"text": text}
            if len(document["about"]):
                targets = len(document["labels"])
                outcome.update(reference=unpack_json(document["about"]), loss=loss, targets=targets)
            outcomes.append(outcome)
        return outcomes

    def _written(self, model: Any, batch: WritingBatch) -> list[str]:
        """By beam search. Not by the model's own method: an adapter's and Whisper's do more than is asked here."""
        from transformers import GenerationMixin

        module = unwrapped(model)
        module = module.get_base_model() if hasattr(module, "get_base_model") else module
        prompt = torch.tensor([self._prompt], device=batch.labels.device).expand(len(batch.labels), -1)
        written = GenerationMixin.generate(
            module,
            **in_dtype_of(module, batch.inputs),
            decoder_input_ids=prompt,
            decoder_start_token_id=self._prompt[0],
            eos_token_id=stops(module, self._tokenizer),
            max_length=max(len(self._prompt), self._settings.longest_target) + 1,  # with what it is given first
            max_new_tokens=None,
            num_beams=self._settings.beams,
            do_sample=False,
            use_cache=True,
            synced_gpus=sharded(module),
        )
        texts = self._tokenizer.batch_decode(written[:, prompt.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        return self._score([outcome["reference"] for outcome in outcomes], [outcome["text"] for outcome in outcomes])

    def join(self, parts: Sequence[Outcome]) -> Outcome:
        return only(parts)

    def answer(self, outcome: Outcome) -> Outcome:
        return {"text": outcome["text"]}


def in_dtype_of(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sounds in the numbers that a model computes with; tokens and masks as they are."""
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
