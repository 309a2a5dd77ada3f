"""The lengths of a batch without padding, from which the FLOPs of a model are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lengths:
    """How much of a batch a model works on.

    Attributes:
        read: tokens of each sequence that attention keeps apart; of an encoder-decoder what the encoder reads.
        targets: at how many places something is to be predicted.
        written: tokens of the decoder of an encoder-decoder, for each sequence that is read; empty: there is none.
    """

    read: Sequence[int]
    targets: int
    written: Sequence[int] = ()
