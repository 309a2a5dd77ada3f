"""Places at which a test has this rank killed: DISTFT_FAILPOINT=RANK:PLACE. Without it nothing happens here.

Every place of `pulse.at` is one, and so is each boundary between two writes of a checkpoint (`checkpoint.store`).
"""

from __future__ import annotations

import os
import signal

_rank, _, _place = os.environ.get("DISTFT_FAILPOINT", "").partition(":")
_wanted = _place if _rank in (os.environ.get("RANK"), "*") else ""


def reach(place: str) -> None:
    """Does not return, at the place that was asked for."""
    if _wanted and place == _wanted:
        os.kill(os.getpid(), signal.SIGKILL)
