"""When a job with a time limit stops by itself."""

from __future__ import annotations

import signal
import time

import pytest

from distft.process import stop_signals
from distft.process.deadline import Clock


def test_without_a_limit_time_is_never_out() -> None:
    clock = Clock(None)
    clock.stepped(1e9)
    assert not clock.out_of_time()


def test_a_step_and_a_save_must_still_fit() -> None:
    clock = Clock(time.time() + 60)
    clock.stepped(5.0)
    clock.saved(10.0)
    assert not clock.out_of_time()
    clock.stepped(30.0)
    assert clock.out_of_time()


def test_what_a_stop_or_the_end_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Clock(None).leaves_less_than(1e9)
    assert Clock(time.time() + 60).leaves_less_than(40.0)
    assert not Clock(time.time() + 60).leaves_less_than(20.0)
    monkeypatch.setattr(stop_signals, "_received", [(signal.SIGTERM, time.monotonic() - 5.0)])
    assert Clock(None).leaves_less_than(15.0)
    assert not Clock(time.time() + 3600).leaves_less_than(5.0)


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_wall_clock_that_is_set_meanwhile_changes_nothing(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    near, far, now = Clock(time.time() + 10), Clock(time.time() + 60), time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    assert near.out_of_time()
    assert not far.out_of_time()
