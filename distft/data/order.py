"""Orders that depend on a seed and nothing else: no random stream, so the same on every numpy and platform."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_STEPS_A_WINDOW = 50  # of rows that are sorted among each other; more sort better, fewer mix better


def order(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """A permutation of range(n), int64 [n]: a pure function of (seed, epoch, n)."""
    return np.argsort(hashes(seed, epoch, n), kind="stable").astype(np.int64)


def grouped(seed: int, epoch: int, sizes: npt.NDArray[np.int32], batch: int) -> npt.NDArray[np.int64]:
    """A permutation of range(len(sizes)) in which rows of similar sizes stand together, `batch` at a time.

    Within windows of some batches of a random order rows are sorted by size; the batches of a window then come in a
    random order themselves. A last batch that is not full stays the last.
    """
    mixed = order(seed, epoch, len(sizes))
    full = len(mixed) // batch
    windows = np.arange(len(mixed)) // (batch * _STEPS_A_WINDOW)
    by_size = mixed[np.lexsort((sizes[mixed], windows))]
    batches = hashes(seed, ~epoch, full)
    shuffled = np.lexsort((batches, np.arange(full) // _STEPS_A_WINDOW))
    return np.concatenate([by_size[: full * batch].reshape(full, batch)[shuffled].reshape(-1), by_size[full * batch :]])


def draw(seed: int, position: int) -> int:
    """A number in [0, 2**63) for a position in the stream of rows."""
    return int(_mix(_mix(_words(seed)) + _words(~position))[0]) >> 1


def hashes(seed: int, stream: int, n: int) -> npt.NDArray[np.uint64]:
    """uint64 [n], outputs 0..n-1 of the splitmix64 generator (Steele et al. 2014) keyed by (seed, stream)."""
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
