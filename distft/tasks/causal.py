"""Causal language modelling: predict marked tokens from those before them in the same document."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from distft.data.types import Document

TOKENS = "tokens"  # the name of the loss and of its count
_FILLER = 0  # a padding token is seen by no real one: it comes last and attention is causal


@dataclass(frozen=True)
class CausalBatch:
    """B rows of T tokens, all int64.

    Attributes:
        input_ids: [B, T].
        position_ids: [B, T]; they restart at 0 with each document, which is how transformers keeps documents apart.
        keep: [K], columns at which logits are wanted, for all rows.
        at: [N], where a target's logits are in the flattened [B * K].
        targets: [N], the tokens to predict.
        useful_tokens: tokens that are not padding.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    keep: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    useful_tokens: int


class Causal:
    """The task for any causal LM of transformers.

    Args:
        forward: the model's forward, asked for what it takes.
        flatten: rows become one row of B * T tokens; flash attention keeps documents apart in that form only.
    """

    def __init__(self, forward: Any, flatten: bool) -> None:
        taken = inspect.signature(forward).parameters
        self._takes_keep = "logits_to_keep" in taken
        self._takes_positions = "position_ids" in taken
        self._flatten = flatten

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> CausalBatch:
        width = max(2, *(sum(len(document.tokens) for document in row) for row in rows))
        ids = np.full((len(rows), width), _FILLER, dtype=np.int64)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        wanted = np.zeros((len(rows), width), dtype=np.bool_)
        useful = 0
        for index, row in enumerate(rows):
            begin = 0
            for document in row:
                end = begin + len(document.tokens)
                ids[index, begin:end] = document.tokens
                wanted[index, begin:end] = document.targets
                positions[index, begin:] = np.arange(width - begin)  # padding carries on the last document
                begin = end
            useful += begin
            if begin == 0:
                positions[index] = np.arange(width)
        if self._flatten:
            ids, positions, wanted = ids.reshape(1, -1), positions.reshape(1, -1), wanted.reshape(1, -1)
        return self._batch(ids, positions, wanted, useful, device)

    def _batch(self, ids: Any, positions: Any, wanted: Any, useful: int, device: torch.device) -> CausalBatch:
        row, column = np.nonzero(wanted)
        before = column - 1  # the logits that predict a token are at the one before it
        if self._takes_keep:
            keep, place = np.unique(before, return_inverse=True)
            if len(keep) == 0:
                keep = np.zeros(1, dtype=np.int64)
        else:
            keep, place = np.arange(ids.shape[1]), before
        tensors = (ids, positions, keep, row * len(keep) + place, ids[row, column])
        input_ids, position_ids, kept, at, targets = (torch.from_numpy(array).to(device) for array in tensors)
        return CausalBatch(input_ids, position_ids, kept, at, targets, useful)

    def counts(self, batch: CausalBatch) -> dict[str, int]:
        return {TOKENS: len(batch.targets)}

    def loss(self, model: Any, batch: CausalBatch) -> dict[str, torch.Tensor]:
        logits = self._logits(model, batch).flatten(0, 1)[batch.at]
        return {TOKENS: functional.cross_entropy(logits.float(), batch.targets, reduction="sum")}

    def _logits(self, model: Any, batch: CausalBatch) -> torch.Tensor:
        """[B, K, vocabulary], in the model's dtype."""
        optional = {"position_ids": batch.position_ids} if self._takes_positions else {}
        if self._takes_keep:
            optional["logits_to_keep"] = batch.keep
        logits: torch.Tensor = model(input_ids=batch.input_ids, use_cache=False, **optional).logits
        return logits

    @torch.no_grad()
    def documents_leak(self, model: Any, vocabulary: int, device: torch.device) -> bool:
        """Whether a document in a packed row changes what comes after it, found by trying. Collective under ZeRO-3."""
        first = [np.arange(6) % vocabulary, (np.arange(6) + vocabulary // 2) % vocabulary]
        second = np.arange(3, 9) % vocabulary
        seen = []
        for tokens in first:
            documents = [Document(part.astype(np.int32), np.arange(len(part)) > 0) for part in (tokens, second)]
            batch = self.collate([documents], device)
            all_columns = CausalBatch(
                batch.input_ids,
                batch.position_ids,
                torch.arange(batch.input_ids.shape[1], device=device),
                batch.at,
                batch.targets,
                batch.useful_tokens,
            )
            seen.append(self._logits(model, all_columns)[0, len(tokens) :].float())
        scale = float(seen[0].abs().max()) or 1.0
        return not torch.allclose(seen[0], seen[1], rtol=0.0, atol=1e-3 * scale)
