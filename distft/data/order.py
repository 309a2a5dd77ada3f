"""The order of rows: a permutation that depends on the seed alone, the same on every platform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_STEPS_A_WINDOW = 50  # of rows that are sorted among each other; more sort better, fewer mix better
_WINDOWS = 4  # so that the same rows do not meet in every epoch, but
_FEWEST = 4  # batches a window: fewer sort nothing
_DIGIT = 16  # bits that numpy sorts by radix


def order(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """A permutation of range(n), int64 [n]: a pure function of (seed, epoch, n)."""
    return np.argsort(hashes(seed, epoch, n)).astype(np.int64, copy=False)  # no two hashes are the same


def grouped(seed: int, epoch: int, sizes: npt.NDArray[np.int32], batch: int) -> npt.NDArray[np.int64]:
    """A permutation of range(len(sizes)) in which rows of similar sizes stand together, `batch` at a time.

    Within windows of some batches of a random order rows are sorted by size; the batches of a window then come in a
    random order themselves. Epochs follow each other in one stream that is cut every `batch` rows, so the first rows
    complete the batch that the epoch before has begun, and the last ones begin one.
    """
    mixed = order(seed, epoch, len(sizes))
    lead = min(-epoch * len(sizes) % batch, len(sizes))
    first, rest = mixed[:lead], mixed[lead:]
    full = len(rest) // batch
    window = max(_FEWEST, min(_STEPS_A_WINDOW, full // _WINDOWS))
    last = max(1, full // window) - 1  # takes what is too little for one more
    windows = np.minimum(np.arange(len(rest)) // (batch * window), last)
    rising = stable_order(sizes[rest])
    by_size = rest[rising[stable_order(windows[rising])]]
    any_batch = order(seed, ~epoch, full)
    shuffled = any_batch[stable_order(np.minimum(any_batch // window, last))]
    batches = by_size[: full * batch].reshape(full, batch)[shuffled].reshape(-1)
    return np.concatenate([first, batches, by_size[full * batch :]])


def draws(seed: int, positions: Sequence[int]) -> list[int]:
    """A number in [0, 2**63) for each of some positions in the stream of rows."""
    places = (~np.asarray(positions, np.int64)).view(np.uint64)
    found: list[int] = (_mix(_mix(_words(seed)) + places) >> np.uint64(1)).tolist()
    return found


def stable_order(keys: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """`np.argsort(keys, kind="stable")` of integers from 0 on, by a radix sort: several times as fast."""
    found = np.argsort(keys.astype(np.uint16), kind="stable")
    for shift in range(_DIGIT, int(keys.max(initial=0)).bit_length(), _DIGIT):
        found = found[np.argsort((keys >> shift).astype(np.uint16)[found], kind="stable")]
    return found


def hashes(seed: int, stream: int, n: int) -> npt.NDArray[np.uint64]:
    """uint64 [n], outputs 0..n-1 of the splitmix64 generator (Steele et al. 2014) keyed by (seed, stream).
    All of them differ: each step of the generator can be undone."""
    key = int(_mix(_mix(_words(seed)) + _words(stream))[0])
    # Arrays wrap around silently; numpy's scalars would warn.
    return _mix(np.arange(1, n + 1, dtype=np.uint64) * _words(_GOLDEN) + _words(key))


def _words(value: int) -> npt.NDArray[np.uint64]:
    return np.array([value & _MASK], dtype=np.uint64)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finalizer, on each element."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
