"""The order of rows from several sources of one task, by weight: a pure function of the seed and the position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from distft.data.loader import RowOrder
from distft.data.mixture import Cycle


class Blend:
    """One endless sequence of rows, in each cycle of which every source has its share.

    How far each source is in its own sequence follows from the position, so nothing of it is in a checkpoint. A source
    whose rows are used up goes on with its next epoch.

    Args:
        orders: of the rows of each source.
        weights: their shares, in any unit.
    """

    def __init__(self, orders: Sequence[RowOrder], weights: Sequence[float], seed: int) -> None:
        self._orders, self._cycle = tuple(orders), Cycle(weights, seed)

    def samples(self, index: int) -> list[int]:
        source, place = self._cycle.place(index)
        return self._orders[source].samples(place)

    def costs(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        found = np.empty(len(places), np.int64)
        for source, (at, theirs) in self._divided(places).items():
            found[at] = self._orders[source].costs(theirs)
        return found

    def documents(self, rows: range) -> npt.NDArray[np.int64]:
        """In the order of their sources, not of the rows."""
        parts = self._divided(np.arange(rows.start, rows.stop))
        # rows of a source that follow each other here do so there
        return np.concatenate(
            [np.zeros(0, np.int64)]
            + [self._orders[source].documents(range(its[0], its[-1] + 1)) for source, (_, its) in parts.items()]
        )

    def _divided(self, places: npt.NDArray[np.int64]) -> dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """By source: which of the places are its, and where they are in its own sequence."""
        found = [self._cycle.place(int(place)) for place in places]
        sources, own = (np.array([one[which] for one in found], np.int64) for which in (0, 1))
        return {int(one): (np.flatnonzero(sources == one), own[sources == one]) for one in np.unique(sources)}
