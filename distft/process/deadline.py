"""The time limit of a job: does another step, plus the save after it, still fit?"""

from __future__ import annotations

import math
import time

from distft.process import stop_signals

MARGIN = 1.5  # of the slowest step and the slowest save seen
RECENT_STEPS = 20
GRACE_SECONDS = 20.0  # that a stop leaves at least: SLURM kills 30 seconds after it, unless told otherwise
LEAVE_SECONDS = 15.0  # to draw the chart, to let W&B finish, and for the batch script to ask for the next attempt


class Clock:
    """Knows when the job ends, and measures what must fit before.

    Args:
        deadline: seconds since the epoch; None: there is no limit, and time is never out.
        state_bytes: of this rank's part of a checkpoint, from which the first save is estimated.
    """

    def __init__(self, deadline: float | None, state_bytes: int = 0) -> None:
        # Counted from here on, so that a wall clock which is set meanwhile changes nothing.
        self._ends = None if deadline is None else time.monotonic() + deadline - time.time()
        self._save = 2.0 + state_bytes / 100e6  # a slow shared file system
        self._measured = False
        self._steps: list[float] = []

    def stepped(self, seconds: float) -> None:
        self._steps = [*self._steps, seconds][-RECENT_STEPS:]

    def saved(self, seconds: float) -> None:
        self._save = max(self._save, seconds) if self._measured else seconds
        self._measured = True

    @property
    def room(self) -> float:
        """Seconds that a step, a save and the way out take, generously."""
        return MARGIN * (max(self._steps, default=0.0) + self._save) + LEAVE_SECONDS

    def leaves_less_than(self, seconds: float) -> bool:
        """Whether this process may be killed before what takes so long is done: its time is nearly over, or a stop was
        requested, of which nobody says how long it leaves."""
        stopped = stop_signals.seconds_ago()
        ends = [] if self._ends is None else [self._ends - time.monotonic() - LEAVE_SECONDS]
        return (
            min([*ends, *([] if stopped is None else [GRACE_SECONDS - stopped])], default=math.inf) < MARGIN * seconds
        )

    def out_of_time(self) -> bool:
        """Whether to stop now."""
        return self._ends is not None and time.monotonic() + self.room > self._ends
