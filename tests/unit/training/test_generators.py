"""What is drawn in a forward pass depends on the seed and the place in the run."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from distft.training.loop import seed_generators

CPU = torch.device("cpu")


def drawn(seed: int, number: int, micro: int) -> list[float]:
    seed_generators(seed, number, micro, CPU)
    return [*torch.rand(3).tolist(), *np.random.rand(3).tolist()]


def test_generators_are_seeded_by_seed_step_and_micro_batch() -> None:
    places = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    first = [drawn(*place) for place in places]
    assert len(set(map(tuple, first))) == len(places)
    assert [drawn(*place) for place in reversed(places)] == first[::-1]


def test_they_are_as_in_runs_begun_before() -> None:
    """When torch.manual_seed was called with the same number."""
    found = drawn(3, 5, 2)
    digest = hashlib.sha256(b"3 5 2").digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    np.random.seed(int.from_bytes(digest[8:12], "little"))
    assert found == [*torch.rand(3).tolist(), *np.random.rand(3).tolist()]
