"""The order of the blocks of a source in streaming: which of them each lane reads, as a function of seed and place.

There are L lanes, one for each row of the global batch, so that neither ranks nor micro-batches matter. The B blocks
of epoch e come in the order `order(seed, e, B)`. Epochs follow each other, and place p of that endless sequence holds

    block(p) = order(seed, p // B, B)[p % B]

Lane l reads it in windows k = 0, 1, ... of w(k) = min(2 ** k, 16) blocks. The windows k of all lanes stand next to each
other, behind all earlier ones, so that window k of lane l holds the places

    L W(k) + l w(k) + [0, w(k)),  W(k) = w(0) + ... + w(k - 1) = 2 ** k - 1 if k <= 4, else 15 + 16 (k - 4)

and each place is in one window of one lane. First windows are small because all of one is encoded before its first row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from distft.data.order import order

LARGEST = 16  # blocks of a window
_GROWING = LARGEST.bit_length() - 1  # windows that are smaller
_EPOCHS = 4  # whose orders are kept


class BlockOrder:
    """Of `blocks` blocks and `lanes` lanes, both at least 1."""

    def __init__(self, seed: int, blocks: int, lanes: int) -> None:
        self.seed, self.blocks, self.lanes = seed, blocks, lanes
        self._order = lru_cache(maxsize=_EPOCHS)(self._make_order)

    def _make_order(self, epoch: int) -> npt.NDArray[np.int64]:
        return order(self.seed, epoch, self.blocks)

    def window(self, lane: int, number: int) -> list[int]:
        """The blocks of a window of a lane."""
        first = self.lanes * begin(number) + lane * size(number)
        return [self._block(place) for place in range(first, first + size(number))]

    def _block(self, place: int) -> int:
        epoch, position = divmod(place, self.blocks)
        return int(self._order(epoch)[position])

    def rows(self, lane: int, number: int, rows: int) -> npt.NDArray[np.int64]:
        """The order of the rows that a window of a lane makes, int64 [rows]."""
        return order(self.seed, ~(number * self.lanes + lane), rows)


def size(number: int) -> int:
    """Blocks of window `number` of each lane."""
    return min(1 << min(number, _GROWING), LARGEST)


def begin(number: int) -> int:
    """Blocks of the windows before it."""
    grown = min(number, _GROWING)
    return (1 << grown) - 1 + LARGEST * (number - grown)
