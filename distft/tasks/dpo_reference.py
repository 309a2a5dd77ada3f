"""Reference log-probabilities for DPO, recorded before the first step changes the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from distft.data.records import Document
from distft.errors import UserError
from distft.run.files import complete_file

PAIR_COLUMNS = ("chosen", "chosen_targets", "rejected", "rejected_targets")  # of a pair of answers
BASE_KEY = "base"  # key of the file's metadata
Entry = tuple[int, float, float]  # key of a pair, log-probabilities of its chosen and its rejected answer


class Reference(Protocol):
    def logps(self, documents: Sequence[Document]) -> torch.Tensor:
        """Log-probabilities of the chosen and the rejected answers, fp32 [documents, 2]."""


class RecordedReference:
    """Log-probabilities by the content of a pair: it does not matter which data it is in, or where.

    Args:
        keys: uint64 [N], rising.
        logps: float32 [N, 2].
        base: digest of the starting model.
    """

    def __init__(self, keys: npt.NDArray[np.uint64], logps: npt.NDArray[np.float32], base: str = "") -> None:
        self._keys, self._logps, self.base = keys, logps, base

    @classmethod
    def empty(cls) -> RecordedReference:
        """Nothing is recorded yet."""
        return cls(np.zeros(0, np.uint64), np.zeros((0, 2), np.float32))

    @classmethod
    def read(cls, path: Path) -> RecordedReference:
        """What `write` wrote. Raises UserError where it is missing or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                base = (file.metadata() or {})[BASE_KEY]
                return cls(file.get_tensor("keys"), file.get_tensor("logps"), base)
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(
                f"{path}, the starting model's log-probabilities, cannot be read ({error}); start a new run"
            ) from None

    def entries(self) -> Iterator[Entry]:
        """All that is recorded, as `write` takes it."""
        for key, (chosen, rejected) in zip(self._keys.tolist(), self._logps.tolist(), strict=True):
            yield key, chosen, rejected

    def of(self, document: Document) -> npt.NDArray[np.float32]:
        """Chosen and rejected, [2]. Raises UserError where the pair was not recorded."""
        place = self._place(document)
        if place is None:
            raise UserError(
                f"record {document.record} (counted from 0): the starting model's log-probabilities for it were not "
                "recorded, because only data.train and data.eval are, before the first step; add it to data.eval of "
                "a new run, or train a fresh adapter: then the model without the adapter is the reference"
            )
        return self._logps[place]  # type: ignore[no-any-return]

    def lacks(self, documents: Iterable[Document]) -> Document | None:
        """The first of these pairs that was not recorded."""
        return next((document for document in documents if self._place(document) is None), None)

    def _place(self, document: Document) -> int | None:
        wanted = np.uint64(pair_key(document))
        place = int(np.searchsorted(self._keys, wanted))
        return place if place < len(self._keys) and self._keys[place] == wanted else None

    def logps(self, documents: Sequence[Document]) -> torch.Tensor:
        values = [self.of(document) for document in documents]
        return torch.from_numpy(np.stack(values) if values else np.zeros((0, 2), np.float32))


def pair_key(document: Document) -> int:
    """XXH3 of 64 bits over the tokens of a pair and which of them are targets."""
    whole = xxhash.xxh3_64()
    for name in PAIR_COLUMNS:
        data = np.ascontiguousarray(document[name]).tobytes()
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.intdigest()


def write(path: Path, entries: Iterable[Entry], base: str) -> None:
    """All or nothing. Of pairs that are there several times, any is kept. `base`: digest of the starting model."""
    from safetensors.numpy import save

    found = sorted({entry[0]: entry for entry in entries}.values())
    keys = np.array([entry[0] for entry in found], np.uint64)
    logps = np.array([entry[1:] for entry in found], np.float32).reshape(-1, 2)
    with complete_file(path) as temporary:
        temporary.write_bytes(save({"keys": keys, "logps": logps}, {BASE_KEY: base}))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without gradients and without dropout; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
