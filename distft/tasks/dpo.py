"""Task dpo: direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from distft.data.loader import Census
from distft.data.messages import texts_of
from distft.data.pairs import pair_of, pair_prompt_of
from distft.data.records import Column, Document, Encoded, Record, each
from distft.data.templates import Draft, Marked, Template
from distft.errors import UserError
from distft.metrics.scores import Report
from distft.recipe.adapters import AdaLora, Lora
from distft.recipe.tasks import DPO
from distft.run.digest import of_parts
from distft.tasks.causal_lm import Causal
from distft.tasks.dpo_reference import PAIR_COLUMNS, Entry, RecordedReference, Reference, evaluating, pair_key
from distft.tasks.protocol import ModelSpec, Outcome, Setting, TaskSpec, mean, only
from distft.tasks.shared.boundaries import FLATTENED
from distft.tasks.shared.causal_rows import CausalBatch
from distft.tasks.shared.chunked_head import Call, ChunkedHead
from distft.tasks.shared.generation import unwrapped
from distft.tasks.shared.lengths import Lengths
from distft.tasks.shared.padding import DROPPED
from distft.tasks.shared.position_limits import positions
from distft.tasks.shared.tokenizer_family import DECODER

PAIRS = "pairs"  # the name of the loss and of its count
EQUAL = "with equal answers were dropped"
MUTE = "without anything to predict were dropped"


def spec(settings: DPO, fields: Mapping[str, str]) -> TaskSpec:
    def texts(record: Record) -> Iterator[str]:
        pair = pair_of(record, fields)
        for messages in (pair.prompt.messages + pair.chosen, pair.rejected):
            yield "\n".join(texts_of(messages))

    def encoder(setting: Setting) -> DPOEncoder:
        data = setting.recipe.data
        return DPOEncoder(Template.load(setting.processor(), data), fields, data.row_tokens)

    def build(setting: Setting, model: Any) -> Preference:
        adapter = setting.recipe.adapter
        # An adapter that begins with trained weights is part of the starting model: without it that is not the same.
        carried = isinstance(adapter, Lora | AdaLora) and adapter.start is None
        reference = None if carried else RecordedReference.empty()
        flatten = getattr(model.config, "_attn_implementation", "") in FLATTENED
        return Preference(settings.beta, Causal(model.forward, flatten, setting, positions(model)), reference)

    model = ModelSpec("AutoModelForCausalLM", DECODER, peft_task="CAUSAL_LM", tells_documents=True)
    return TaskSpec(model, texts, encoder, build, input_field="prompt", takes_decoding=True)


@dataclass(frozen=True)
class DPOEncoder:
    """Two sequences of tokens a record, each the prompt with one of its answers.

    Args:
        fields: as in `Data`.
        row_tokens: a pair with a longer sequence is left out.
    """

    template: Template
    fields: Mapping[str, str]
    row_tokens: int

    columns = dict(zip(PAIR_COLUMNS, ("int32", "bool", "int32", "bool"), strict=True))  # noqa: RUF012 - a constant

    @cached_property
    def digest(self) -> str:
        return of_parts("dpo", self.template.digest, sorted(self.fields.items()), self.row_tokens)

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        """`size` is the longer of the two. Not answered: `chosen` is the prompt, `rejected` empty."""
        if not answered:
            prompt = self._prompt(record)
            columns = (prompt, np.zeros(len(prompt), bool), np.zeros(0, np.int32), np.zeros(0, bool))
            return Encoded([_document(columns, targets=0)])
        chosen, rejected = map(self.template.marked, self._drafts(record))
        return self._encoded(chosen, rejected)

    def encode_many(self, records: Sequence[Record]) -> list[Encoded | UserError]:
        drafts = each(records, self._drafts)
        marked = iter(self.template.all_marked([one for two in drafts if isinstance(two, tuple) for one in two]))
        return [two if isinstance(two, UserError) else self._encoded(next(marked), next(marked)) for two in drafts]

    def _drafts(self, record: Record) -> tuple[Draft, Draft]:
        """Of the chosen answer and the rejected one."""
        pair = pair_of(record, self.fields)
        chosen, rejected = (
            self.template.draft_of(pair.answered(answer), record.where) for answer in (pair.chosen, pair.rejected)
        )
        return chosen, rejected

    def _encoded(self, chosen: Marked, rejected: Marked) -> Encoded:
        notes, warnings = {**rejected.notes, **chosen.notes}, {**rejected.warnings, **chosen.warnings}
        if np.array_equal(chosen.tokens, rejected.tokens):
            return Encoded([], {**notes, EQUAL: 1}, warnings)
        document = _document((chosen.tokens, chosen.targets, rejected.tokens, rejected.targets), targets=1)
        if document.size > self.row_tokens:
            return Encoded([], {**notes, DROPPED: 1}, warnings)
        if not chosen.targets.any() or not rejected.targets.any():
            return Encoded([], {**notes, MUTE: 1}, warnings)
        return Encoded([document], notes, warnings)

    def _prompt(self, record: Record) -> Column:
        try:
            return self.template.prompt(pair_prompt_of(record, self.fields))
        except UserError as error:
            raise UserError(f"{record.where}: {error}") from error


def _document(columns: Sequence[Column], targets: int) -> Document:
    return Document(dict(zip(PAIR_COLUMNS, columns, strict=True)), max(len(columns[0]), len(columns[2])), targets)


@dataclass(frozen=True)
class Pairs:
    """B pairs, or B prompts without an answer.

    Attributes:
        sequences: of pairs 2 B, all chosen ones before all rejected ones, padded on the right; of nothing 2, empty.
        attention_mask: int64 [2 B, T]; None if all sequences are one row.
        documents: as they were given, B.
    """

    sequences: CausalBatch
    attention_mask: torch.Tensor | None
    documents: Sequence[Document]

    @property
    def useful_tokens(self) -> int:
        return self.sequences.useful_tokens

    @property
    def lengths(self) -> Lengths:
        return self.sequences.lengths

    def __len__(self) -> int:
        return len(self.documents)


class Preference:
    """The task for any causal LM of transformers.

    Args:
        beta: of the loss: how much it costs to leave the reference.
        causal: for sequences that are not packed.
        reference: None: the model with its adapter switched off.
    """

    counted = (PAIRS,)

    def __init__(self, beta: float, causal: Causal, reference: Reference | None) -> None:
        self._beta, self.causal, self.reference = beta, causal, reference

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> Pairs:
        documents = [document for row in rows for document in row]
        asked = documents and all(document.targets == 0 for document in documents)
        sides = ("chosen",) if asked else ("chosen", "rejected")
        sequences = [[_sequence(document, side)] for side in sides for document in documents]
        batch = self.causal.collate(sequences or [[], []], device)
        if batch.boundaries is not None:
            return Pairs(batch, None, documents)
        height, width = batch.input_ids.shape
        sizes = [document.size for document in batch.documents] or [width] * height
        mask = torch.arange(width) < torch.tensor(sizes).unsqueeze(1)
        return Pairs(batch, mask.long().to(device), documents)

    def counts(self, batch: Pairs) -> dict[str, int]:
        return {PAIRS: len(batch)}

    def foreseen(self, census: Census) -> dict[str, int]:
        return {PAIRS: census.documents}

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        return mean(counts)

    def loss(self, model: Any, batch: Pairs) -> dict[str, torch.Tensor]:
        """Equation 7 of the paper, summed over pairs."""
        return {PAIRS: self._losses(self._rewards(model, batch)).sum()}

    def _losses(self, rewards: torch.Tensor) -> torch.Tensor:
        return -functional.logsigmoid(rewards[:, 0] - rewards[:, 1])

    def _rewards(self, model: Any, batch: Pairs) -> torch.Tensor:
        """Of the chosen and the rejected answers, fp32 [B, 2]: equation 5 without what is the same for both."""
        reference = self._reference(model, batch)  # before the forward whose activations are kept
        return self._beta * (self._logps(model, batch) - reference)

    def _reference(self, model: Any, batch: Pairs) -> torch.Tensor:
        if self.reference is not None:
            return self.reference.logps(batch.documents).to(batch.sequences.input_ids.device)
        with evaluating(model), unwrapped(model).disable_adapter():
            return self._logps(model, batch)

    def _logps(self, model: Any, batch: Pairs) -> torch.Tensor:
        """Log-probabilities of the chosen and the rejected answers, each the sum over its targets: fp32 [B, 2]."""
        sequences = batch.sequences
        masked = {} if batch.attention_mask is None else {"attention_mask": batch.attention_mask}
        logps = -self.causal.each_loss(model, sequences, masked)
        lengths = [document.targets for document in sequences.documents] or [0, 0]
        # No scatter: on a GPU it would add in another order each time.
        sums = torch.stack([part.sum() for part in torch.split(logps, lengths)])
        return sums.view(2, -1).T[: len(batch)]

    def few(self, model: Any, vocabulary: int, device: torch.device) -> Call:
        return self.causal.few(model, vocabulary, device)

    @property
    def head(self) -> ChunkedHead | None:
        """A trained one makes all logits in training: how much a target weighs in the loss is known afterwards."""
        return self.causal.head

    @head.setter
    def head(self, head: ChunkedHead | None) -> None:
        self.causal.head = head

    def values(self, model: Any, batch: Pairs) -> list[Entry]:
        """What a `RecordedReference` is made of: log-probabilities under the weights as they are."""
        with evaluating(model):
            logps = self._logps(model, batch).tolist()
        return [(pair_key(d), chosen, rejected) for d, (chosen, rejected) in zip(batch.documents, logps, strict=True)]

    def predict(self, model: Any, batch: Pairs) -> list[Outcome]:
        """The rewards of both answers; where there are none, an answer."""
        if len(batch) and all(document.targets == 0 for document in batch.documents):
            return self.causal.predict(model, batch.sequences)
        rewards = self._rewards(model, batch)
        return [
            {"chosen": chosen, "rejected": rejected, "loss": loss, "targets": 1}
            for (chosen, rejected), loss in zip(rewards.tolist(), self._losses(rewards).tolist(), strict=True)
        ]

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        """How often the chosen answer has the higher reward, with the 95 % interval, and by how much on average."""
        margins = [outcome["chosen"] - outcome["rejected"] for outcome in outcomes if outcome.get("targets")]
        if not margins:
            return Report({})
        right = sum(margin > 0.0 for margin in margins)
        low, high = interval(right, len(margins))
        accuracy = {"reward_accuracy": right / len(margins), "reward_accuracy_low": low, "reward_accuracy_high": high}
        return Report({**accuracy, "reward_margin": fmean(margins)})

    def join(self, parts: Sequence[Outcome]) -> Outcome:
        return only(parts)

    def answer(self, outcome: Outcome) -> Outcome:
        return outcome


def _sequence(document: Document, side: str) -> Document:
    tokens, targets = document[side], document[f"{side}_targets"]
    return Document({"tokens": tokens, "targets": targets}, len(tokens), int(targets.sum()))


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)
