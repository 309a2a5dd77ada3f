"""Task causal-lm: predict each marked token from the tokens before it in its document."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from distft.data.formats import Conversation, asked_by, parse, prompt_of
from distft.data.loader import Census
from distft.data.messages import texts_of
from distft.data.pieces import EMPTY, MarkedCut
from distft.data.records import Column, Document, Encoded, Record, each
from distft.data.templates import REJECTED, Draft, Marked, Template
from distft.errors import UserError
from distft.metrics.scores import Report
from distft.recipe.schema import Data
from distft.recipe.tasks import CausalLM
from distft.run.digest import of_parts
from distft.tasks.protocol import MICRO_BATCHES, Each, ModelSpec, Outcome, Setting, TaskSpec, mean, only
from distft.tasks.shared.boundaries import FLATTENED
from distft.tasks.shared.causal_rows import CausalBatch, Rows
from distft.tasks.shared.chunked_head import Call, ChunkedHead
from distft.tasks.shared.generation import continued
from distft.tasks.shared.position_limits import positions
from distft.tasks.shared.routers import ROUTER, Routers, balance, find_routers
from distft.tasks.shared.token_scores import add_outcomes, report_token_scores, score_tokens, scores_of, sum_and_each
from distft.tasks.shared.tokenizer_family import DECODER

TOKENS = "tokens"  # the name of the loss and of its count


def spec(settings: CausalLM, fields: Mapping[str, str]) -> TaskSpec:
    def texts(record: Record) -> Iterator[str]:
        parsed = parse(record, fields)
        yield parsed if isinstance(parsed, str) else "\n".join(texts_of(parsed.messages))

    def encoder(setting: Setting) -> CausalEncoder:
        data = setting.recipe.data
        template = Template.load(setting.processor(), data)
        return CausalEncoder(template, fields, data.row_tokens, drop=data.overlong == "drop")

    def build(setting: Setting, model: Any) -> Causal:
        flatten = getattr(model.config, "_attn_implementation", "") in FLATTENED
        routers = find_routers(model, setting.recipe.train.router_loss)
        return Causal(model.forward, flatten, setting, positions(model), routers)

    model = ModelSpec("AutoModelForCausalLM", DECODER, peft_task="CAUSAL_LM", packs=True, tells_documents=True)
    return TaskSpec(model, texts, encoder, build, takes_decoding=True, cut=cut_of)


def cut_of(data: Data) -> MarkedCut:
    return MarkedCut(data.row_tokens, data.overlong == "drop")


@dataclass(frozen=True)
class CausalEncoder:
    """Conversations and texts as tokens, in pieces where they are longer than a row.

    Args:
        fields: as in `Data`.
        row_tokens: of a piece; None: whole documents.
        drop: leave a record out rather than cut it.
        continues: a text to predict from is continued, and not what a user says.
    """

    template: Template
    fields: Mapping[str, str]
    row_tokens: int | None
    drop: bool
    continues: bool = False

    columns = {"tokens": "int32", "targets": "bool"}  # noqa: RUF012 - a constant of the class

    @property
    def digest(self) -> str:
        return of_parts("causal-lm", self.template.digest, sorted(self.fields.items()), self.row_tokens, self.drop)

    @property
    def uncut(self) -> CausalEncoder:
        return replace(self, row_tokens=None, drop=False)

    def encode(self, record: Record, answered: bool = True) -> Encoded:
        if not answered:
            asked = prompt_of(record, self.fields)
            try:
                tokens = self._opening(asked)
            except UserError as error:
                raise UserError(f"{record.where}: {error}") from error
            if len(tokens) == 0:
                raise UserError(f"{record.where}: the prompt is empty")
            return Encoded([Document({"tokens": tokens, "targets": np.zeros(len(tokens), bool)}, len(tokens), 0)])
        return self._encoded(self.template.encode(record, self.fields))

    def _encoded(self, marked: Marked) -> Encoded:
        if self.row_tokens is not None:
            return split_to_rows(marked, self.row_tokens, self.drop)
        if REJECTED in marked.notes:
            return Encoded([], marked.notes)
        return Encoded([_whole(marked)], marked.notes, marked.warnings)

    def encode_many(self, records: Sequence[Record]) -> list[Encoded | UserError]:
        drafts = each(records, lambda record: self.template.draft(record, self.fields))
        marked = iter(self.template.all_marked([draft for draft in drafts if isinstance(draft, Draft)]))
        return [draft if isinstance(draft, UserError) else self._encoded(next(marked)) for draft in drafts]

    def _opening(self, asked: Conversation | str) -> Column:
        if isinstance(asked, str) and self.continues:
            return self.template.opening(asked)
        return self.template.prompt(asked_by(asked) if isinstance(asked, str) else asked)


def _whole(marked: Marked) -> Document:
    columns = {"tokens": marked.tokens, "targets": marked.targets}
    return Document(columns, len(marked.tokens), int(marked.targets.sum()))


def split_to_rows(marked: Marked, size: int, drop: bool) -> Encoded:
    """A document, or several where it is longer than a row; those without anything to predict are left out. What
    `MarkedCut` makes of the whole document is the same."""
    whole, cut = _whole(marked), MarkedCut(size, drop)
    if whole.size > size and drop:
        return Encoded([], {**marked.notes, cut.note: 1}, marked.warnings)
    notes = {**marked.notes, cut.note: 1} if whole.size > size else dict(marked.notes)
    if REJECTED in notes:
        return Encoded([], notes)
    documents = []
    for begin in range(0, max(whole.size, 1), size):
        columns = cut.columns(whole, begin, size)
        if count := int(columns["targets"].sum()):
            documents.append(Document(columns, len(columns["tokens"]), count))
        else:
            notes[EMPTY] = notes.get(EMPTY, 0) + 1
    return Encoded(documents, notes, marked.warnings)


class Causal:
    """The task for any causal LM of transformers.

    Attributes:
        head: makes logits of targets a chunk at a time; None: the model makes those of all targets at once.

    Args:
        forward: the model's forward, asked for what it takes.
        flatten: see `Rows`.
        setting: for predictions, which need a tokenizer.
        limit: tokens that the model takes; None: it knows no limit.
        routers: those of a mixture of experts; their loss is a term of its own.
    """

    def __init__(
        self,
        forward: Any,
        flatten: bool,
        setting: Setting | None = None,
        limit: int | None = None,
        routers: Routers | None = None,
    ) -> None:
        self.counted = (TOKENS,) if routers is None else (TOKENS, MICRO_BATCHES)
        self._routers = routers
        taken = inspect.signature(forward).parameters
        self._takes_keep = "logits_to_keep" in taken
        self._takes_positions = "position_ids" in taken
        self._takes_more = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values())
        self.rows = Rows(flatten, self._takes_keep, limit)
        self._setting, self._limit = setting, limit
        self.head: ChunkedHead | None = None

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> CausalBatch:
        return self.rows.collate(rows, device)

    def counts(self, batch: CausalBatch) -> dict[str, int]:
        found = {TOKENS: len(batch.targets), MICRO_BATCHES: 1}
        return {name: found[name] for name in self.counted}

    def foreseen(self, census: Census) -> dict[str, int]:
        found = {TOKENS: census.targets, MICRO_BATCHES: census.micro_batches}
        return {name: found[name] for name in self.counted}

    def factors(self, counts: Mapping[str, float]) -> dict[str, float]:
        found = mean({TOKENS: counts[TOKENS]})
        if (routers := self._balanced) is not None:
            found[ROUTER] = routers.weight * mean(counts)[MICRO_BATCHES]
        return found

    @property
    def _balanced(self) -> Routers | None:
        """The routers, if their loss counts."""
        return self._routers if self._routers is not None and self._routers.weight else None

    def loss(self, model: Any, batch: CausalBatch) -> dict[str, torch.Tensor]:
        if self.head is not None:
            return self.loss_and_each(model, batch)[0]
        output = self._output(model, batch, {**self._kept(batch), **self._asked})
        logits = output.logits.flatten(0, 1)[batch.at]
        total = functional.cross_entropy(logits.float(), batch.targets, reduction="sum")
        return {TOKENS: total, **self._terms(output, batch)}

    def loss_and_each(self, model: Any, batch: CausalBatch) -> tuple[dict[str, torch.Tensor], Each]:
        if self.head is not None:
            output, each = self.head.sum_and_each(self._call(model, batch, self._asked))
            return {TOKENS: output.loss, **self._terms(output, batch)}, Each(each, batch.owners)
        output = self._output(model, batch, {**self._kept(batch), **self._asked})
        total, each = sum_and_each(output.logits.flatten(0, 1)[batch.at].float(), batch.targets)
        return {TOKENS: total, **self._terms(output, batch)}, Each(each, batch.owners)

    @property
    def _asked(self) -> dict[str, Any]:
        """What the model is asked for besides."""
        return {} if self._balanced is None else {"output_router_logits": True}

    def _terms(self, output: Any, batch: CausalBatch) -> dict[str, torch.Tensor]:
        if (routers := self._balanced) is None:
            return {}
        return {ROUTER: balance(output.router_logits, routers.chosen, batch.real)}

    def each_loss(self, model: Any, batch: CausalBatch, optional: Mapping[str, Any]) -> torch.Tensor:
        """Of each target, fp32 [N]. `optional`: what else the model is given."""
        if self.head is not None and not (self.head.trained and torch.is_grad_enabled()):
            found: torch.Tensor = self.head.each_loss(self._call(model, batch, optional)).loss
            return found
        return functional.cross_entropy(self._at_targets(model, batch, optional), batch.targets, reduction="none")

    def _at_targets(self, model: Any, batch: CausalBatch, optional: Mapping[str, Any]) -> torch.Tensor:
        """Logits of the targets, fp32 [N, vocabulary]."""
        optional = {**self._kept(batch), **optional}
        found: torch.Tensor = self._output(model, batch, optional).logits.flatten(0, 1)[batch.at].float()
        return found  # a name for all logits would keep them alive

    def logits(self, model: Any, batch: CausalBatch) -> torch.Tensor:
        """Of all places, [B, T, vocabulary], in the model's dtype."""
        everywhere = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device)
        found: torch.Tensor = self._output(model, batch, self._kept(replace(batch, keep=everywhere))).logits
        return found

    def _call(self, model: Any, batch: CausalBatch, optional: Mapping[str, Any]) -> Call:
        return Call(lambda: self._output(model, batch, optional), batch.places, batch.targets)

    def _kept(self, batch: CausalBatch) -> dict[str, torch.Tensor]:
        return {"logits_to_keep": batch.keep} if self._takes_keep else {}

    def _output(self, model: Any, batch: CausalBatch, optional: Mapping[str, Any]) -> Any:
        given = dict(optional)
        if self._takes_positions:
            given["position_ids"] = batch.position_ids
        if batch.boundaries is not None and self._takes_more:
            given |= batch.boundaries.arguments
        return model(input_ids=batch.input_ids, use_cache=False, **given)

    def predict(self, model: Any, batch: CausalBatch) -> list[Outcome]:
        """How well each document's targets were told; where there are none, an answer to it."""
        if batch.documents and all(document.targets == 0 for document in batch.documents):
            return self._answers(model, batch)
        if self.head is not None:
            scores = self.head.scores(self._call(model, batch, {}))
        else:
            scores = scores_of(self._at_targets(model, batch, {}), batch.targets)
        return score_tokens(scores, batch.owners, len(batch.documents))

    def _answers(self, model: Any, batch: CausalBatch) -> list[Outcome]:
        """An answer is as long as the model has places for it behind the prompt, whatever the others in the batch."""
        setting, ends = self._template
        most, limit = setting.decoding.max_tokens, self._limit
        rooms = [most if limit is None else min(most, limit - document.size) for document in batch.documents]
        texts = {}
        for room in {room for room in rooms if room > 0}:
            some = [d["tokens"].tolist() for d, its in zip(batch.documents, rooms, strict=True) if its == room]
            decoding = replace(setting.decoding, max_tokens=room)
            texts[room] = iter(continued(model, setting.processor(), some, decoding, ends))
        full = f"the prompt fills all {limit} positions of the model; shorten it"
        return [{"answer": next(texts[room])} if room > 0 else {"error": full} for room in rooms]

    @cached_property
    def _template(self) -> tuple[Setting, tuple[str, ...]]:
        """What predictions need, and what ends a turn: any of these texts."""
        assert self._setting is not None
        template = Template.load(self._setting.processor(), self._setting.recipe.data)
        return self._setting, template.ends

    def score(self, outcomes: Sequence[Outcome]) -> Report:
        return report_token_scores(outcomes)

    def join(self, parts: Sequence[Outcome]) -> Outcome:
        """The pieces of a text that was longer than a row."""
        return add_outcomes(parts) if "targets" in parts[0] else only(parts)

    def answer(self, outcome: Outcome) -> Outcome:
        return outcome

    def few(self, model: Any, vocabulary: int, device: torch.device) -> Call:
        tokens = (np.arange(6) * 7 % vocabulary, np.arange(3, 9) % vocabulary)
        return self._call(model, self._one_row(tokens, device), {})

    def _one_row(self, tokens: Sequence[Column], device: torch.device) -> CausalBatch:
        """Documents side by side."""
        marks = (np.arange(len(one)) > 0 for one in tokens)
        columns = ({"tokens": t.astype(np.int32), "targets": m} for t, m in zip(tokens, marks, strict=True))
        return self.collate([[Document(one, len(one["tokens"])) for one in columns]], device)

    @torch.no_grad()
    def documents_leak(self, model: Any, vocabulary: int, device: torch.device) -> bool:
        """Whether a document in a packed row changes what comes after it, found by trying; a model that takes no
        positions cannot tell documents apart. Collective under ZeRO-3."""
        if not self._takes_positions:
            return True
        first = [np.arange(6) % vocabulary, (np.arange(6) + vocabulary // 2) % vocabulary]
        second = np.arange(3, 9) % vocabulary
        seen = []
        for tokens in first:
            seen.append(self.logits(model, self._one_row((tokens, second), device))[0, len(tokens) :])
        # what differs by rounding alone stays below; a new model's leak is small too
        tolerance = 1e-4 if seen[0].dtype == torch.float32 else 1e-3
        scale = float(seen[0].abs().max()) or 1.0
        return not torch.allclose(seen[0].float(), seen[1].float(), rtol=0.0, atol=tolerance * scale)
