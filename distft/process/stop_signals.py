"""Stop signals: a handler only sets a flag, and the training loop acts on it.

TERM, USR1, USR2, INT and HUP (a closed terminal) all mean the same: stop at the next step and save. Which of them a
cluster sends, and when, is in docs/architecture.md. The flag is local to a process; the training loop makes all ranks
agree on it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from distft.errors import Preempted
from distft.process import environment

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)

_received: list[tuple[signal.Signals, float]] = []


def _on_signal(signum: int, _frame: FrameType | None) -> None:
    _received.append((signal.Signals(signum), time.monotonic()))


def listen() -> None:
    """Take over the stop signals; those that were held back (see `hold`) arrive now."""
    for number in SIGNALS:
        if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # nohup: the run is to outlive its terminal
        signal.signal(number, _on_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def hold_back() -> None:
    """Keep stop signals pending. A child started now inherits this, so that a signal which reaches
    it before it listens is delivered late instead of killing it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@contextmanager
def put_off() -> Iterator[None]:
    """Keep what ends a command pending until the block is done. Its children never see it: a Ctrl-C of the terminal
    would end them too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def received() -> list[signal.Signals]:
    """The stop signals so far, oldest first."""
    return [number for number, _ in _received]


def requested() -> bool:
    """Whether a stop was requested of this process."""
    return bool(_received)


def seconds_ago() -> float | None:
    """How long ago the first stop was requested of this process; None: there was none."""
    return time.monotonic() - _received[0][1] if _received else None


def check() -> None:
    """Leave at once if a stop was requested; for start-up, where there is no step to save.

    Raises:
        Preempted: a stop was requested.
    """
    if _received:
        number, _ = _received[0]
        raise Preempted(f"stopped on request ({number.name}) before the first step of this attempt")


def deadline() -> float | None:
    """When the scheduler ends this job, in seconds since the epoch, as far as the parent knows (DISTFT_DEADLINE)."""
    value = os.environ.get(environment.DEADLINE)
    return float(value) if value else None
