"""Boundaries: where documents begin in one row of tokens, as attention by document is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

VARLEN = "varlen"  # the name of our own attention by document
FLATTENED = ("flash_attention_2", VARLEN)  # implementations of attention that are told where documents begin


@dataclass(frozen=True)
class Boundaries:
    """Where documents begin in a single row, for attention that keeps them apart by that.

    Attributes:
        begins: int32 [documents + 1], the first token of each, and the end.
        sizes: their tokens. Both are known on the CPU too, so that nothing waits for a GPU to tell.
    """

    begins: torch.Tensor
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Self:
        begins = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        return cls(torch.from_numpy(begins), tuple(sizes))

    @property
    def arguments(self) -> dict[str, Any]:
        """Of a model's forward, in transformers' words; the sizes are for our own attention."""
        longest = max(self.sizes)
        begins = {"cu_seq_lens_q": self.begins, "cu_seq_lens_k": self.begins}
        return {**begins, "max_length_q": longest, "max_length_k": longest, "document_sizes": self.sizes}
