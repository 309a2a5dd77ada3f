"""Padded batches: documents as rows of tokens, padded to the longest in the batch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from distft.data.pieces import DROPPED as DROPPED
from distft.data.pieces import SPLIT as SPLIT
from distft.data.records import Column, Document
from distft.errors import UserError
from distft.run.digest import of_parts
from distft.tasks.shared.boundaries import VARLEN
from distft.tasks.shared.flat_rows import FlatRow, ends_in_rows
from distft.tasks.shared.lengths import Lengths
from distft.tasks.shared.position_limits import filler_position, positions
from distft.tasks.shared.transfer import moved

TRUNCATED = "longer than a row were truncated"
WIDTH_STEP = 64  # tokens
COLUMNS: Mapping[str, str] = {"tokens": "int32", "types": "uint8"}  # of a document that `padded` takes


@dataclass(frozen=True)
class Padded:
    """B sequences of T tokens.

    Attributes:
        input_ids, attention_mask: int64 [B, T].
        token_type_ids: int64 [B, T]: 1 where the second of two texts is.
        documents: as they were given; B is their number, or 1 where there is none.
        flat: the row in which a model is given them, where it takes them without padding.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor
    documents: Sequence[Document]
    flat: FlatRow | None = None

    @property
    def useful_tokens(self) -> int:
        return sum(document.size for document in self.documents)

    @property
    def lengths(self) -> Lengths:
        return Lengths([document.size for document in self.documents], sum(d.targets for d in self.documents))

    def __len__(self) -> int:
        return len(self.documents)


def row_width(longest: int, limit: int | None, on_gpu: bool | None = None) -> int:
    """Tokens of a row whose longest document, or documents together, have so many.

    On a GPU one of a few widths, so that torch's allocator finds blocks of the sizes that it has already.

    Args:
        limit: tokens that the model takes; None: it knows no limit.
    """
    if not (torch.cuda.is_available() if on_gpu is None else on_gpu):
        return longest
    rounded = -(-longest // WIDTH_STEP) * WIDTH_STEP
    return rounded if limit is None else max(longest, min(rounded, limit))


def column(documents: Sequence[Document], name: str, device: torch.device) -> torch.Tensor:
    """A column of all documents, one after the other."""
    arrays = [np.asarray(document[name]) for document in documents]
    tensor = torch.from_numpy(np.concatenate(arrays) if arrays else np.zeros(0, np.int64))
    return tensor if device.type == "cpu" else moved(tensor, device)


class Inputs:
    """Pads documents for a model, and hands it those of the inputs that it takes.

    Attributes:
        flat: the model is given them in one row without padding, by whose layout its heads see them padded.
        may_leave_out: heads look at the first token of each document alone, as far as is known.
        leaves_out: what they do not look at is not computed behind the last attention of a flat row.

    Args:
        model: of transformers, with its adapter or without.
        tokenizer: the model's.
    """

    def __init__(self, model: Any, tokenizer: Any, may_leave_out: bool = False) -> None:
        taken = inspect.signature(model.forward).parameters
        self._limit, self._filler_position = positions(model), filler_position(model)
        self.flat = getattr(model.config, "_attn_implementation", "") == VARLEN and ends_in_rows(model)
        self.may_leave_out, self.leaves_out = self.flat and may_leave_out, False
        self._types = "token_type_ids" in taken and getattr(model.config, "type_vocab_size", 0) > 1
        self.filler = model.config.pad_token_id if getattr(model.config, "pad_token_id", None) is not None else 0
        # some models look for the tokens around a text
        self._blank = tokens_of(tokenizer, "a", "a")
        if not len(self._blank["tokens"]):
            self._blank = {"tokens": np.full(2, self.filler, np.int32), "types": np.zeros(2, np.uint8)}

    def padded(self, rows: Sequence[Sequence[Document]], device: torch.device) -> Padded:
        """The documents of all rows, one below the other. Without any a row that nobody asked for keeps the graph the
        same."""
        documents = [document for row in rows for document in row]
        columns = [document.columns for document in documents] or [self._blank]
        shape = (len(columns), row_width(max(len(one["tokens"]) for one in columns), self._limit))
        ids, mask, types = np.full(shape, self.filler, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for index, one in enumerate(columns):
            size = len(one["tokens"])
            ids[index, :size] = one["tokens"]
            types[index, :size] = one["types"]
            mask[index, :size] = 1
        tensors = [torch.from_numpy(array).to(device) for array in (ids, mask, types)]
        flat = None
        if self.flat:
            sizes = [len(one["tokens"]) for one in columns]
            width = row_width(sum(sizes), None)
            flat = FlatRow.of(sizes, shape[1], width, first=self.leaves_out).to(device)
        return Padded(tensors[0], tensors[1], tensors[2], documents, flat)

    def __call__(self, batch: Padded) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.input_ids}
        if self._types:
            inputs["token_type_ids"] = batch.token_type_ids
        row = batch.flat
        if row is not None:
            inputs["position_ids"] = self._positions(batch.input_ids)
            fillers = {"input_ids": self.filler}
            inputs = {name: row.flattened(tensor, fillers.get(name, 0)) for name, tensor in inputs.items()}
            inputs |= row.arguments
        return {**inputs, "attention_mask": batch.attention_mask}  # some heads take means by it

    def _positions(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [B, T], as transformers counts them."""
        if self._filler_position is None:
            return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        real = (ids != self._filler_position).long()
        return real.cumsum(1) * real + self._filler_position


@runtime_checkable
class Reads(Protocol):
    """A task whose model is given texts by `Inputs`."""

    inputs: Inputs


def digest_of(tokenizer: Any) -> str:
    """sha256 (hex) of all that decides which tokens a text becomes.

    Raises:
        UserError: it is not one of the fast tokenizers, which alone tell where a token came from.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} is a slow tokenizer; use a fast one (with a tokenizer.json)")
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Both are state that a call may leave behind; what is used here is named at each call.
    del backend["truncation"], backend["padding"]
    sides = [side for side in [tokenizer.truncation_side] if side != "right"]  # which tokens a limit leaves
    return of_parts(backend, {name: str(token) for name, token in tokenizer.special_tokens_map.items()}, *sides)


def tokens_of(tokenizer: Any, text: str, pair: str | None = None, limit: int | None = None) -> dict[str, Column]:
    """A text, or a pair of texts, with the special tokens around: `COLUMNS`.

    Args:
        limit: tokens at most; the longer of a pair is cut.
    """
    found = tokenizer(
        text,
        pair,
        truncation="longest_first" if limit is not None else False,
        max_length=limit,
        return_token_type_ids=True,
        verbose=False,
    )
    return {"tokens": np.array(found["input_ids"], np.int32), "types": np.array(found["token_type_ids"], np.uint8)}


def all_tokens_of(tokenizer: Any, texts: Sequence[Sequence[str]]) -> list[dict[str, Column]]:
    """As `tokens_of`, of several texts or pairs at once, which costs less than one after the other."""
    if len({len(one) for one in texts}) != 1:  # none at all, or some are pairs
        return [all_tokens_of(tokenizer, [one])[0] for one in texts]
    found = tokenizer(*map(list, zip(*texts, strict=True)), return_token_type_ids=True, verbose=False)
    return [
        {"tokens": np.array(ids, np.int32), "types": np.array(types, np.uint8)}
        for ids, types in zip(found["input_ids"], found["token_type_ids"], strict=True)
    ]


def pack_json(value: Any) -> Column:
    """A value as bytes, for a column of what scores need and models do not: uint8 [n]."""
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)


def unpack_json(column: Column) -> Any:
    return json.loads(bytes(np.asarray(column, np.uint8)))
