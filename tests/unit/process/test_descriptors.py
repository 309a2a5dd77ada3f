"""Open files of a rank: many ranks need many connections."""

from __future__ import annotations

import resource

import pytest

from distft.errors import RunFailed
from distft.process.distributed import have_descriptors


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limit, soft and hard, as it was set last."""
    now = [(1024, 65536)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: now.append(both))
    return now


def test_a_low_limit_is_raised_as_far_as_the_world_needs(limits: list[tuple[int, int]]) -> None:
    have_descriptors(512)
    assert limits[-1] == (2 * (256 + 2 * 512), 65536)
    have_descriptors(2)
    assert len(limits) == 2
    limits.append((1024, 1300))
    have_descriptors(512)  # as much as there is, if that is enough
    assert limits[-1] == (1300, 1300)


def test_a_limit_that_cannot_be_raised_is_said(limits: list[tuple[int, int]]) -> None:
    limits.append((1024, 2048))
    with pytest.raises(RunFailed, match=r"1024 ranks need 2304 open files per process and this node allows 2048"):
        have_descriptors(1024)
    assert limits[-1] == (1024, 2048)


def test_no_limit_is_left_alone(limits: list[tuple[int, int]]) -> None:
    limits.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    have_descriptors(100_000)
    assert limits[-1] == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
