"""Rows of a causal language model: documents side by side in rows of tokens, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from distft.data.records import Document
from distft.tasks.shared.boundaries import Boundaries
from distft.tasks.shared.lengths import Lengths
from distft.tasks.shared.padding import row_width

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
        owners: [N], the document that a target is of, counted over the batch.
        real: bool [B * T], False for padding.
        useful_tokens: tokens that are not padding.
        documents: as they were given, in order.
        boundaries: where documents begin, if all rows are one; padding at its end counts as a document.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    keep: torch.Tensor
    at: torch.Tensor
    targets: torch.Tensor
    owners: torch.Tensor
    real: torch.Tensor
    useful_tokens: int
    documents: Sequence[Document]
    boundaries: Boundaries | None = None

    @property
    def places(self) -> torch.Tensor:
        """[N], where a target's hidden state is in the flattened [B * T]."""
        columns = len(self.keep)
        return self.at // columns * self.input_ids.shape[1] + self.keep[self.at % columns]

    @property
    def lengths(self) -> Lengths:
        return Lengths([document.size for document in self.documents], len(self.targets))


@dataclass(frozen=True)
class Rows:
    """How rows of documents become a batch.

    Attributes:
        flatten: all rows become one, without padding between them: the form for attention by document.
        takes_keep: the model computes logits at some columns only if it is told which.
        limit: tokens that the model takes; None: it knows no limit.
    """

    flatten: bool
    takes_keep: bool
    limit: int | None

    def collate(self, rows: Sequence[Sequence[Document]], device: torch.device) -> CausalBatch:
        if self.flatten:
            rows = [[document for row in rows for document in row]]
        longest = max(2, *(sum(document.size for document in row) for row in rows))
        width = row_width(longest, None if self.flatten else self.limit)
        ids = np.full((len(rows), width), _FILLER, dtype=np.int64)
        positions = np.zeros((len(rows), width), dtype=np.int64)
        owners = np.full((len(rows), width), -1, dtype=np.int64)  # of the tokens that are targets
        real = np.zeros((len(rows), width), dtype=bool)
        documents: list[Document] = []
        for index, row in enumerate(rows):
            begin = 0
            for document in row:
                end = begin + document.size
                ids[index, begin:end] = document["tokens"]
                owners[index, begin:end] = np.where(document["targets"], len(documents), -1)
                # padding carries on the last document, unless it is one of its own
                positions[index, begin : end if self.flatten else width] = np.arange(
                    (end if self.flatten else width) - begin
                )
                documents.append(document)
                begin = end
            real[index, :begin] = True
            if begin == 0 and not self.flatten:
                positions[index] = np.arange(width)
        batch = self._batch(ids, positions, owners, real.reshape(-1), documents, device)
        if not self.flatten:
            return batch
        sizes = [document.size for document in documents]
        boundaries = Boundaries.of([size for size in (*sizes, width - sum(sizes)) if size])
        return replace(batch, boundaries=replace(boundaries, begins=boundaries.begins.to(device)))

    def _batch(
        self, ids: Any, positions: Any, owners: Any, real: Any, documents: Sequence[Document], device: torch.device
    ) -> CausalBatch:
        row, column = np.nonzero(owners >= 0)
        before = column - 1  # the logits that predict a token are at the one before it
        if self.takes_keep:
            keep, place = np.unique(before, return_inverse=True)
            if len(keep) == 0:
                keep = np.zeros(1, dtype=np.int64)
        else:
            keep, place = np.arange(ids.shape[1]), before
        arrays = (ids, positions, keep, row * len(keep) + place, ids[row, column], owners[row, column], real)
        input_ids, position_ids, kept, at, targets, owner, useful_ones = (
            torch.from_numpy(array).to(device) for array in arrays
        )
        useful = sum(document.size for document in documents)
        return CausalBatch(input_ids, position_ids, kept, at, targets, owner, useful_ones, useful, documents)
